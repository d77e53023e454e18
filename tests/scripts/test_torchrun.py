"""``scripts/torchrun.sh``: what it passes on, how it ends, and that restarts cost no exactness."""

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.helpers import ROOT
from tests.support.networks import one_thread
from tests.support.runs import NUM_EPOCHS, largest_difference, rows, weights
from tests.support.torchrun import SCRIPT, start, uninterrupted, words, write_place

SECONDS = 200


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def agent() -> ModuleType:
    """Return the module that stands in for torchrun."""
    spec = importlib.util.spec_from_file_location("agent", ROOT / "scripts/torchrun_agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(*given: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script with an ``echo`` in the place of Python."""
    variables = {"PATH": os.environ["PATH"], "PYTHON": "echo", **env}
    return subprocess.run(
        [str(SCRIPT), *given], env=variables, capture_output=True, text=True, check=False
    )


def options(*given: str, **env: str) -> tuple[dict[str, str], list[str]]:
    """Return what the script gives to torchrun, and the command that torchrun runs."""
    ended = asked(*(given or ("photos", "--output", "run")), **env)
    assert ended.returncode == 0, ended.stderr
    before, _, after = ended.stdout.strip().partition(" -- ")
    pairs = (word.partition("=") for word in before.split() if word.startswith("--"))
    return {name.removeprefix("--"): value for name, _, value in pairs}, after.split()


def test_one_machine_needs_no_setting() -> None:
    fit = ["photos", "--output", "run", "--epochs", "3"]
    given, command = options(*fit, NPROC="2")
    assert command == ["finetune", "fit", *fit, "resume=auto"]
    assert (given["nnodes"], given["nproc-per-node"], given["max-restarts"]) == ("1", "2", "3")
    assert (given["rdzv-endpoint"], given["local-addr"]) == ("localhost:0", "127.0.0.1")
    assert given["rdzv-backend"] == "c10d"
    assert "module" in given


def test_a_word_about_resuming_is_not_said_twice() -> None:
    assert options("photos", "output=run", "resume=auto")[1].count("resume=auto") == 1


@pytest.mark.parametrize(
    ("env", "endpoint", "is_host"),
    [
        ({"NNODES": "2", "RDZV": "a:1", "NODE_RANK": "1"}, "a:1", ",is_host=false"),
        ({"NNODES": "1:2", "RDZV": "a:1", "JOB_COMPLETION_INDEX": "0"}, "a:1", ",is_host=true"),
        ({"NNODES": "2", "RDZV": "a:1"}, "a:1", ""),
        ({"PET_NNODES": "2", "PET_RDZV_ENDPOINT": "w-0:23456"}, "w-0:23456", ""),
        (
            {"PET_NNODES": "2", "PET_MASTER_ADDR": "n-0.n", "PET_NODE_RANK": "0"},
            "n-0.n:29500",
            ",is_host=true",
        ),
    ],
    ids=["by hand", "Indexed Job", "by names", "PyTorchJob", "TrainJob"],
)
def test_several_machines_meet_at_one_place(
    env: dict[str, str], endpoint: str, is_host: str
) -> None:
    given, _ = options(NPROC="1", **env)
    assert given["nnodes"] == env.get("NNODES", env.get("PET_NNODES"))
    assert given["rdzv-endpoint"] == endpoint
    assert given["rdzv-conf"] == f"join_timeout=600,read_timeout=120{is_host}"
    assert "local-addr" not in given


def test_what_is_set_is_passed_on() -> None:
    env = {"NNODES": "2", "RDZV": "a:1", "LOCAL_ADDR": "10.0.0.7", "PET_NPROC_PER_NODE": "4"}
    times = {"MAX_RESTARTS": "0", "JOIN_SECONDS": "30", "OUTAGE_SECONDS": "9", "RDZV_ID": "mine"}
    given, _ = options(**env, **times)
    assert (given["local-addr"], given["nproc-per-node"]) == ("10.0.0.7", "4")
    assert (given["max-restarts"], given["rdzv-id"]) == ("0", "mine")
    assert given["rdzv-conf"] == "join_timeout=30,read_timeout=9"


@pytest.mark.parametrize(
    ("given", "env", "message"),
    [
        ((), {}, "usage: scripts/torchrun.sh DATA"),
        (("photos",), {}, "all processes need one run folder: add --output"),
        (("photos", "--output", "run"), {"NNODES": "2"}, "NNODES=2: say with RDZV=host:port"),
    ],
)
def test_what_is_missing_is_said(given: tuple[str, ...], env: dict[str, str], message: str) -> None:
    ended = asked(*given, **env)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stdout == ""


def test_a_name_that_nobody_else_reaches_is_pointed_out(tmp_path: Path) -> None:
    fake = tmp_path / "getent"
    fake.write_text("#!/bin/sh\necho 127.0.1.1 me\n")
    fake.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NNODES": "2", "RDZV": "a:1"}
    command = ("photos", "--output", "run")
    assert "set INTERFACE=eth0" in asked(*command, **env).stderr
    assert asked(*command, **env, GLOO_SOCKET_IFNAME="eth1").stderr == ""


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([7, 3], 3),
        ([85, 2], 2),
        ([7, 85, -15], 85),
        ([7, -9], 7),
        ([-9, -9], 137),
        ([1], 1),
        ([], 7),
    ],
)
def test_one_exit_code_stands_for_all(agent: ModuleType, codes: list[int], expected: int) -> None:
    assert agent.summary(codes) == expected


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def expected(place: Path) -> Path:
    """Return the run of one process that never stopped."""
    return uninterrupted(place)


def assert_alike(run: Path, expected: Path) -> None:
    """Fail unless both runs have the same epochs and the same weights."""
    assert [row["epoch"] for row in rows(run)] == [str(n + 1) for n in range(NUM_EPOCHS)]
    assert largest_difference(weights(run), weights(expected)) <= 1e-6


def ended(process: subprocess.Popen[bytes], log: Path) -> tuple[int, str]:
    """Wait for the script; return its exit code and what it said."""
    try:
        code = process.wait(SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, log.read_text()


@pytest.mark.slow
def test_two_processes_end_as_one_does(place: Path, tmp_path: Path, expected: Path) -> None:
    log = tmp_path / "log"
    code, said = ended(start(place, *words(place, tmp_path / "run"), log=log), log)
    assert code == 0, said
    assert_alike(tmp_path / "run", expected)


@pytest.mark.slow
def test_after_a_killed_process_all_begin_again_and_end_alike(
    place: Path, tmp_path: Path, expected: Path
) -> None:
    log, marker = tmp_path / "log", tmp_path / "killed"
    extra = {"KILL_ONCE": str(marker)}
    process = start(place, *words(place, tmp_path / "run"), extra=extra, log=log)
    code, said = ended(process, log)
    assert code == 0, said
    assert marker.exists()
    assert "Signal 9 (SIGKILL) received" in said or "exitcode: -9" in said
    assert said.count("Goes on") == 1
    assert_alike(tmp_path / "run", expected)


def wait_for_epochs(run: Path, count: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once so many epochs of a run are over."""
    end = time.monotonic() + SECONDS
    while not (run / "metrics.csv").is_file() or len(rows(run)) < count:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


# to torchrun as Kubernetes does, to every process as SLURM and a terminal do
CALLS = (
    (1, signal.SIGTERM, os.kill),
    (2, signal.SIGUSR1, os.killpg),
    (4, signal.SIGINT, os.killpg),
)


@pytest.mark.slow
def test_a_scheduler_that_calls_finds_the_run_saved(
    place: Path, tmp_path: Path, expected: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    for done, signum, send in CALLS:
        process = start(place, *words(place, run), extra={"STEP_SECONDS": "0.05"}, log=log)
        wait_for_epochs(run, done, process, log)
        send(process.pid, signum)
        code, said = ended(process, log)
        assert code == (130 if signum == signal.SIGINT else 85), said
        assert done <= len(rows(run)) < NUM_EPOCHS
    code, said = ended(start(place, *words(place, run), log=log), log)
    assert code == 0, said
    assert said.count("Goes on") == len(CALLS)
    assert "Traceback" not in said
    assert_alike(run, expected)


@pytest.mark.slow
def test_what_a_restart_cannot_mend_is_not_tried_again(place: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(place, *words(place, tmp_path / "run", "--epochs", "many"), log=log)
    code, said = ended(process, log)
    assert code == 2, said
    assert "trainer.epochs: found 'many'" in " ".join(said.split())
    assert 1 <= said.count("error:") <= 2  # one a process: nothing was started anew
