"""Runs through ``scripts/torchrun.sh``, and a place with what they need."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune.cli.main import run as run_command
from tests.support.helpers import ROOT
from tests.support.namespaces import ADDRESSES, INTERFACE, Machines
from tests.support.runs import (
    GRADUAL_CONFIG,
    NUM_EPOCHS,
    STEPS_PER_EPOCH,
    environment,
    rows,
    write_photos,
    write_weights,
)

SCRIPT = ROOT / "scripts" / "torchrun.sh"

TIMEOUT = 12
"""Seconds without an answer after which a process of a ``Job`` gives up."""

SECONDS = 240
"""A job that takes longer hangs."""

# a learning rate of the user's own: it kills a rank at a step, once, and takes time at each
STOPPER = """
import os, signal, time
from pathlib import Path

def stopping(progress, *, final_factor):
    time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
    step, marker = round(progress * STEPS), Path(os.environ.get("KILL_ONCE", os.devnull))
    if step == 11 and os.environ.get("RANK") == "1" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1 - (1 - final_factor) * progress
""".replace("STEPS", str(NUM_EPOCHS * STEPS_PER_EPOCH))


def write_place(folder: Path) -> Path:
    """Fill a folder with photos, weights, the config of the exactness tests and own code."""
    write_photos(folder / "photos")
    write_weights(folder / "weights.pth")
    (folder / "stopper.py").write_text(STOPPER)
    (folder / "config.yaml").write_text(GRADUAL_CONFIG)
    return folder


def words(place: Path, output: Path, *more: object) -> list[str]:
    """Return the words of the run behind ``finetune fit`` or the script."""
    given = (place / "photos", "--config", place / "config.yaml", "--output", output)
    return [*map(str, given), "--weights", str(place / "weights.pth"), *map(str, more)]


def uninterrupted(place: Path) -> Path:
    """Return the run of one process that never stopped, made in this one."""
    output = place / "uninterrupted"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        patch.delitem(sys.modules, "stopper", raising=False)  # another test's, of that name
        assert run_command(["fit", *words(place, output)]) == 0
    return output


def start(
    place: Path,
    *given: object,
    extra: Mapping[str, str] | None = None,
    log: Path,
    before: tuple[str, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start the script with two processes, as the head of a process group of its own.

    Args:
        place: Where it runs.
        given: Its words.
        extra: Environment.
        log: Takes standard output and standard error.
        before: Words in front of the command.
    """
    settings = {"PYTHON": sys.executable, "NPROC": "2", "PYTHONUNBUFFERED": "1", **(extra or {})}
    with log.open("ab") as stream:
        return subprocess.Popen(
            [*before, str(SCRIPT), *map(str, given)],
            cwd=place,
            env=environment(place, settings),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=default_signals,
        )


def default_signals() -> None:
    """Undo what a test runner in the background may have set to be ignored."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)


class Job:
    """The run of the exactness tests, with slow steps, by a process on each of two machines.

    Args:
        machines: Where.
        place: What ``write_place`` filled.
        folder: Takes the run and a log of each machine.
        settings: Environment.
    """

    def __init__(self, machines: Machines, place: Path, folder: Path, **settings: str) -> None:
        self.run = folder / "run"
        self._machines, self._place, self._settings = machines, place, settings
        self._logs = (folder / "log.0", folder / "log.1")
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, rank: int) -> subprocess.Popen[bytes]:
        """Start the script on a machine, for the first time or again."""
        settings = {
            "NNODES": "2",
            "NPROC": "1",
            "RDZV": f"{ADDRESSES[0]}:29500",
            "INTERFACE": INTERFACE,
            "JOIN_SECONDS": "120",
            "NODE_RANK": str(rank),
            "STEP_SECONDS": "0.03",  # for each of 12 parameter groups
        }
        self._processes[rank] = start(
            self._place,
            *words(self._place, self.run, f"trainer.collective_timeout_seconds={TIMEOUT}"),
            extra=settings | self._settings,
            log=self._logs[rank],
            before=self._machines.on(rank),
        )
        return self._processes[rank]

    def wait_for_epochs(self, count: int) -> None:
        """Return once so many epochs are over, and both machines still at work."""
        end = time.monotonic() + SECONDS
        while not (self.run / "metrics.csv").is_file() or len(rows(self.run)) < count:
            assert time.monotonic() < end, self.said
            assert {process.poll() for process in self._processes.values()} == {None}, self.said
            time.sleep(0.1)

    def terminate(self, rank: int) -> None:
        """Ask the script on a machine to stop."""
        self._processes[rank].terminate()

    def code(self, rank: int) -> int:
        """Wait for a machine; return the script's exit code."""
        return self._processes[rank].wait(SECONDS)

    @property
    def said(self) -> tuple[str, str]:
        """What each machine has printed."""
        first, second = (" ".join(log.read_text().split()) for log in self._logs)
        return first, second

    def stop(self) -> None:
        """End what still runs."""
        self._machines.kill_all()
        for process in self._processes.values():
            process.wait()


@contextmanager
def started(machines: Machines, place: Path, folder: Path, **settings: str) -> Iterator[Job]:
    """Run a job on both machines while the block lasts."""
    job = Job(machines, place, folder, **settings)
    try:
        for rank in (0, 1):
            job.start(rank)
        yield job
    finally:
        job.stop()
