"""The further processes of a run on this machine, where no launcher has started them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import TCPStore

from finetune.errors import TrainingError
from finetune.signals import StopRequest
from finetune.training.launch import JOIN_VERB, Launch
from finetune.training.meeting import Meeting, telling

_EXIT_SECONDS = 120
_STOP_SECONDS = 20


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
    met = Meeting(launch, store, timeout=timeout, watch=lambda: _check(children))
    patience = 0.0
    try:
        with telling(met):
            yield met
        _raise_failures([child.wait(_EXIT_SECONDS) for child in children])
    except StopRequest:
        patience = _STOP_SECONDS  # they save, and stop too
        raise
    finally:
        _end(children, patience)


def _started(launch: Launch, rank: int, run_dir: Path) -> subprocess.Popen[bytes]:
    # the threads of all processes together should not outnumber the cores
    threads = max(1, (os.cpu_count() or 1) // launch.world_size)
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": launch.world_size,
        "LOCAL_WORLD_SIZE": launch.world_size,
        "MASTER_ADDR": launch.address,
        "MASTER_PORT": launch.port,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "finetune", JOIN_VERB, str(run_dir)],
        env={
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            **{name: str(value) for name, value in variables.items()},
        },
        stdout=subprocess.DEVNULL,
    )


def _check(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Raise if a process has ended that should wait for the others."""
    _raise_failures([code for child in children if (code := child.poll()) is not None])


def _raise_failures(codes: Sequence[int]) -> None:
    if any(codes):
        raise TrainingError(f"Processes of the run ended with codes {codes}; see their messages.")


def _end(children: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and any(child.poll() is None for child in children):
        time.sleep(0.05)
    for child in children:
        child.kill()
        child.wait()
