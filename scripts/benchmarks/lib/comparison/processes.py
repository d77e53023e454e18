"""Processes pinned to a core and a thread, with their CPU time."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}


@dataclass(frozen=True)
class Usage:
    """Resources of a process and of its own child processes.

    Attributes:
        wall: Seconds from start to end.
        cpu: Seconds of user and system time.
        memory_mb: Largest resident memory of one process in MB.
        load: Load average of the machine at the end of the run.
    """

    wall: float
    cpu: float
    memory_mb: float
    load: float


class ToolError(Exception):
    """A process that failed, with the end of its output."""


class StoppedError(Exception):
    """The comparison was stopped while a process ran, or before it started."""


_stop = threading.Event()
_running: set["subprocess.Popen[bytes]"] = set()


def stop_processes() -> None:
    """Terminate the processes of all threads, and let none start."""
    _stop.set()
    for process in list(_running):
        process.terminate()


def pin_to_core(core: int) -> None:
    """Restrict the calling thread, and the processes that it starts, to a core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(threading.get_native_id(), {core})


def list_cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run_process(
    command: Sequence[object], *, folder: Path, env: Mapping[str, str]
) -> tuple[str, Usage]:
    """Return the standard output and the resources of a process with one thread.

    Args:
        command: Program and arguments.
        folder: Folder for its output and temporary files.
        env: Environment variables in addition to those of this process.

    Raises:
        ToolError: If the process fails.
        StoppedError: If ``stop_processes`` was called.
    """
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, **ONE_THREAD, "TMPDIR": str(temporary), **env}
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    with out.open("w") as stdout, err.open("w") as stderr:
        start = time.monotonic()
        process = subprocess.Popen(
            list(map(str, command)), env=variables, stdout=stdout, stderr=stderr
        )
        _running.add(process)
        if _stop.is_set():
            process.terminate()
        # wait4 instead of RUSAGE_CHILDREN, which adds up the processes of all threads
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        _running.discard(process)
        wall = time.monotonic() - start
    if _stop.is_set():
        raise StoppedError
    if process.returncode:
        messages = f"{out.read_text()[-2000:]}\n{err.read_text()[-4000:]}".strip()
        raise ToolError(f"exit code {process.returncode}:\n{messages}")
    memory_mb = usage.ru_maxrss / 1024  # kB on Linux
    cpu = usage.ru_utime + usage.ru_stime
    return out.read_text(), Usage(wall, cpu, memory_mb, os.getloadavg()[0])
