"""Signals in the first seconds of a command, before there is a run."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.test_closed_output import FIT, INSPECT
from tests.support.runs import build_environment, start_finetune

SLOW_MODULE = """
import pathlib, time
pathlib.Path("importing").touch()
try:
    time.sleep(60)
except BaseException:  # as some packages do
    pass
"""
"""Module in place of a heavy one; it is imported for a minute, and catches what is raised there."""

PREDICT = ("predict", "photos", "photos")


def stop(place: Path, words: tuple[str, ...], module: str, signum: int) -> tuple[int, str, float]:
    """Send a signal while a module is imported; return exit code, output and seconds until the end.

    Args:
        place: Working folder.
        words: Command line.
        module: Name of the module that takes a minute to import.
        signum: Signal.
    """
    (place / "shim").mkdir(exist_ok=True)
    (place / "shim" / f"{module}.py").write_text(SLOW_MODULE)
    path = os.pathsep.join([str(place / "shim"), str(Path.cwd())])
    environment = {**build_environment(place), "PYTHONPATH": path}
    with start_finetune(place, *words, env=environment) as process:
        try:
            end = time.monotonic() + 60
            while not (place / "importing").exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end
                time.sleep(0.01)
            begin = time.monotonic()
            process.send_signal(signum)
            out, _ = process.communicate(timeout=50)
        finally:
            process.kill()
    return process.returncode, out, time.monotonic() - begin


@pytest.mark.parametrize("module", ["typer", "torch"])
@pytest.mark.parametrize(
    ("signum", "code", "message"),
    [
        (signal.SIGINT, 130, "error: Interrupted by Ctrl-C.\n"),
        (signal.SIGTERM, 85, "error: Stopped by SIGTERM.\n"),
        (signal.SIGUSR1, 85, "error: Stopped by SIGUSR1.\n"),
    ],
)
def test_fit_stopped_in_imports_ends_at_once(
    module: str, signum: int, code: int, message: str, place: Path
) -> None:
    returncode, out, seconds = stop(place, FIT, module, signum)
    assert (returncode, out) == (code, message)
    assert seconds < 20, "not after the import"
    assert not (place / "run").exists()


@pytest.mark.parametrize("words", [PREDICT, INSPECT, ("config",)])
def test_other_command_stopped_in_imports_ends_at_once(words: tuple[str, ...], place: Path) -> None:
    returncode, out, seconds = stop(place, words, "typer", signal.SIGINT)
    assert (returncode, out) == (130, "error: Interrupted by Ctrl-C.\n")
    assert seconds < 20


def test_fit_preempted_in_imports_requests_its_requeueing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_REQUEUE_FILE", str(place / "requeue"))
    returncode, out, _ = stop(place, FIT, "torch", signal.SIGTERM)
    assert returncode == 0
    assert out == f"error: Stopped by SIGTERM. A restart was requested through {place}/requeue.\n"
    assert (place / "requeue").read_text() == "SIGTERM\n"


def test_further_rank_stopped_in_imports_is_silent(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    returncode, out, _ = stop(place, FIT, "torch", signal.SIGTERM)
    assert (returncode, out) == (85, "")


@pytest.mark.slow
def test_fit_stopped_while_it_prepares_ends_at_once(place: Path) -> None:
    for delay in (0.5, 2.0, 4.0, 6.0):
        environment = build_environment(Path.cwd())
        with start_finetune(place, *FIT, "--epochs", "1000", env=environment) as process:
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in out
        if (place / "run").exists():
            assert "finetune fit --resume run" in out
            break
        assert out.splitlines()[-1] == "error: Interrupted by Ctrl-C."  # after the plan or alone
