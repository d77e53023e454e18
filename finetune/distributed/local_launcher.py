"""The further processes of a run on this machine, where no launcher has started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch._C._distributed_c10d import TCPStore

from finetune.distributed import signals
from finetune.distributed.launch import JOIN_VERB, Launch
from finetune.distributed.rendezvous import Meeting, telling
from finetune.distributed.signals import REQUEUE_FILE_VARIABLE, STOP_SIGNALS, StopRequest
from finetune.errors import INTERRUPTED_EXIT_CODE, PREEMPTED_EXIT_CODE, TrainingError
from finetune.system.hardware import free_cores

_EXIT_SECONDS = 120
_STOP_SECONDS = 20
_STOP_CODES = {INTERRUPTED_EXIT_CODE: signal.SIGINT, PREEMPTED_EXIT_CODE: signal.SIGTERM}


@contextmanager
def own_meeting(run_dir: Path, *, count: int, timeout: timedelta) -> Iterator[Meeting]:
    """Start ``count`` further processes of a run, meet them, and see them end.

    Args:
        run_dir: The run folder, which they are told to join.
        count: Beside this process, which is rank 0.
        timeout: How long one may give no sign of life.

    Raises:
        TrainingError: One of them failed although this one ended well.
    """
    store = TCPStore(
        "127.0.0.1", 0, count + 1, is_master=True, timeout=timeout, wait_for_workers=False
    )
    launch = Launch(0, count + 1, 0, count + 1, 0, "127.0.0.1", store.port, "environment")
    children = [_started(launch, rank, run_dir) for rank in range(1, count + 1)]
    patience, threads = 0.0, torch.get_num_threads()
    try:
        torch.set_num_threads(_threads(launch.world_size))
        met = Meeting(launch, lambda: store, timeout=timeout, watch=lambda: _check(children))
        with telling(met):
            yield met
            met.leave()  # what comes now is done by this process alone
        if any(codes := [_code(child) for child in children]):
            raise _explained(codes)
    except StopRequest:
        patience = _STOP_SECONDS  # they save, and stop too
        raise
    finally:
        torch.set_num_threads(threads)
        with signals.deferred():
            _end(children, patience)


def _started(launch: Launch, rank: int, run_dir: Path) -> subprocess.Popen[bytes]:
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": launch.world_size,
        "LOCAL_WORLD_SIZE": launch.world_size,
        "MASTER_ADDR": launch.address,
        "MASTER_PORT": launch.port,
    }
    inherited = {name: value for name, value in os.environ.items() if name != REQUEUE_FILE_VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-m", "finetune", JOIN_VERB, str(run_dir)],
        env={
            **inherited,  # rank 0 alone asks to be started again
            "OMP_NUM_THREADS": str(_threads(launch.world_size)),
            **{name: str(value) for name, value in variables.items()},
        },
        stdout=subprocess.DEVNULL,
    )


def _threads(world_size: int) -> int:
    """Return how many a process may have, so that those of all do not outnumber the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else max(1, free_cores() // world_size)


def _code(child: subprocess.Popen[bytes]) -> int:
    """Return what a process exits with, which has nothing more to do."""
    try:
        return child.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TrainingError(
            f"A process of the run (pid {child.pid}) did not end within {_EXIT_SECONDS} s of the "
            f"others. The last checkpoint is whole; go on with --resume."
        ) from error


def _check(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Raise if a process has ended that should wait for the others."""
    codes = [code for child in children if (code := child.poll()) is not None]
    if codes:
        raise _explained(codes)


def _explained(codes: Sequence[int]) -> StopRequest | TrainingError:
    """Return what the exit codes of processes mean for this one."""
    for code in codes:
        # one that was asked to stop before it had met the others could tell nobody
        signum = _STOP_CODES.get(code, -code)
        if signum in STOP_SIGNALS:
            return StopRequest(signum)
    said = ", ".join(map(str, codes))
    return TrainingError(f"Processes of the run ended with codes {said}; see their messages.")


def _end(children: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and any(child.poll() is None for child in children):
        time.sleep(0.05)
    for child in children:
        child.kill()
        child.wait()
