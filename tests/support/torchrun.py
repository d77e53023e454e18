"""Runs of ``scripts/torchrun.sh``, on one node or on two."""

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
from tests.support.namespaces import ADDRESSES, INTERFACE, TwoNodes
from tests.support.runs import (
    GRADUAL_CONFIG,
    NUM_EPOCHS,
    STEPS_PER_EPOCH,
    build_environment,
    read_rows,
    write_photos,
    write_weights,
)

SCRIPT = ROOT / "scripts" / "torchrun.sh"

TIMEOUT = 12
"""Value of ``trainer.collective_timeout_seconds`` in a ``TwoNodeJob``."""

MAX_SECONDS = 240
"""Time after which a job counts as hanging."""

# a user-defined schedule that sleeps at each step and kills rank 1 at step 11, once
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
    """Write photos, weights, the config of the exactness tests and the schedule to a folder."""
    write_photos(folder / "photos")
    write_weights(folder / "weights.pth")
    (folder / "stopper.py").write_text(STOPPER)
    (folder / "config.yaml").write_text(GRADUAL_CONFIG)
    return folder


def build_args(place: Path, output: Path, *more: object) -> list[str]:
    """Return the arguments of ``finetune fit`` or the script."""
    args = (place / "photos", "--config", place / "config.yaml", "--output", output)
    return [*map(str, args), "--weights", str(place / "weights.pth"), *map(str, more)]


def run_uninterrupted(place: Path) -> Path:
    """Return an uninterrupted run, made in this process."""
    output = place / "uninterrupted"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        patch.delitem(
            sys.modules, "stopper", raising=False
        )  # a module of the same name of another test
        assert run_command(["fit", *build_args(place, output)]) == 0
    return output


def start_script(
    place: Path,
    *args: object,
    extra: Mapping[str, str] | None = None,
    log: Path,
    prefix: tuple[str, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start the script with two processes, as the leader of a new process group.

    Args:
        place: Working folder.
        args: Arguments of the script.
        extra: Environment variables.
        log: File for standard output and standard error.
        prefix: Command prefix.
    """
    settings = {"PYTHON": sys.executable, "NPROC": "2", "PYTHONUNBUFFERED": "1", **(extra or {})}
    with log.open("ab") as stream:
        return subprocess.Popen(
            [*prefix, str(SCRIPT), *map(str, args)],
            cwd=place,
            env=build_environment(place, settings),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=reset_signals,
        )


def reset_signals() -> None:
    """Reset signals that a test runner in the background may ignore."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)


class TwoNodeJob:
    """Run of the exactness tests with slow steps, with one process on each of two nodes.

    Args:
        nodes: Nodes.
        place: Folder written by ``write_place``.
        folder: Folder for the run and the log of each node.
        settings: Environment variables.
    """

    def __init__(self, nodes: TwoNodes, place: Path, folder: Path, **settings: str) -> None:
        self.run = folder / "run"
        self._nodes, self._place, self._settings = nodes, place, settings
        self._logs = (folder / "log.0", folder / "log.1")
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, rank: int) -> subprocess.Popen[bytes]:
        """Start the script on a node, for the first time or again."""
        settings = {
            "NNODES": "2",
            "NPROC": "1",
            "RDZV": f"{ADDRESSES[0]}:29500",
            "INTERFACE": INTERFACE,
            "JOIN_SECONDS": "120",
            "NODE_RANK": str(rank),
            "STEP_SECONDS": "0.03",  # for each of 12 parameter groups
        }
        self._processes[rank] = start_script(
            self._place,
            *build_args(self._place, self.run, f"trainer.collective_timeout_seconds={TIMEOUT}"),
            extra=settings | self._settings,
            log=self._logs[rank],
            prefix=self._nodes.build_prefix(rank),
        )
        return self._processes[rank]

    def wait_for_epochs(self, count: int) -> None:
        """Wait until a number of epochs is complete while both nodes are running."""
        deadline = time.monotonic() + MAX_SECONDS
        while not (self.run / "metrics.csv").is_file() or len(read_rows(self.run)) < count:
            assert time.monotonic() < deadline, self.outputs
            is_running = {process.poll() for process in self._processes.values()} == {None}
            assert is_running, self.outputs
            time.sleep(0.1)

    def terminate(self, rank: int) -> None:
        """Send SIGTERM to the script on a node."""
        self._processes[rank].terminate()

    def wait(self, rank: int) -> int:
        """Wait for the script on a node and return its exit code."""
        return self._processes[rank].wait(MAX_SECONDS)

    @property
    def outputs(self) -> tuple[str, str]:
        """Output of each node so far, with single spaces."""
        first, second = (" ".join(log.read_text().split()) for log in self._logs)
        return first, second

    def stop(self) -> None:
        """Kill the processes that are still running."""
        self._nodes.kill_processes()
        for process in self._processes.values():
            process.wait()


@contextmanager
def start_on_two_nodes(
    nodes: TwoNodes, place: Path, folder: Path, **settings: str
) -> Iterator[TwoNodeJob]:
    """Yield a job that runs on both nodes; stop it at the end of the block."""
    job = TwoNodeJob(nodes, place, folder, **settings)
    try:
        for rank in (0, 1):
            job.start(rank)
        yield job
    finally:
        job.stop()
