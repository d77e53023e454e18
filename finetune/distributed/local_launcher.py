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
from finetune.distributed.launch import JOIN_COMMAND, LaunchInfo
from finetune.distributed.rendezvous import Rendezvous, propagate_failures
from finetune.distributed.signals import REQUEUE_FILE_VARIABLE, STOP_SIGNALS, StopRequest
from finetune.errors import INTERRUPTED_EXIT_CODE, PREEMPTED_EXIT_CODE, TrainingError
from finetune.system.hardware import count_available_cores

_EXIT_TIMEOUT_SECONDS = 120
_STOP_GRACE_SECONDS = 20
_EXIT_CODE_SIGNALS = {INTERRUPTED_EXIT_CODE: signal.SIGINT, PREEMPTED_EXIT_CODE: signal.SIGTERM}


@contextmanager
def launch_local_workers(
    run_dir: Path, *, num_workers: int, timeout: timedelta
) -> Iterator[Rendezvous]:
    """Start ``num_workers`` further processes of a run, meet them, and see them end.

    Args:
        run_dir: The run folder, which they are told to join.
        num_workers: Beside this process, which is rank 0.
        timeout: How long one may give no sign of life.

    Raises:
        TrainingError: One of them failed although this one ended well.
    """
    store = TCPStore(
        "127.0.0.1", 0, num_workers + 1, is_master=True, timeout=timeout, wait_for_workers=False
    )
    launch = LaunchInfo(
        0, num_workers + 1, 0, num_workers + 1, 0, "127.0.0.1", store.port, "environment"
    )
    children = [_start_worker(launch, rank, run_dir) for rank in range(1, num_workers + 1)]
    patience, threads = 0.0, torch.get_num_threads()
    try:
        torch.set_num_threads(_compute_num_threads(launch.world_size))
        met = Rendezvous(
            launch, lambda: store, timeout=timeout, health_check=lambda: _check_children(children)
        )
        with propagate_failures(met):
            yield met
            met.depart()  # what comes now is done by this process alone
        if any(codes := [_wait_for_exit_code(child) for child in children]):
            raise _explain_exit_codes(codes)
    except StopRequest:
        patience = _STOP_GRACE_SECONDS  # they save, and stop too
        raise
    finally:
        torch.set_num_threads(threads)
        with signals.defer():
            _kill_children(children, patience)


def _start_worker(launch: LaunchInfo, rank: int, run_dir: Path) -> subprocess.Popen[bytes]:
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": launch.world_size,
        "LOCAL_WORLD_SIZE": launch.world_size,
        "MASTER_ADDR": launch.master_addr,
        "MASTER_PORT": launch.master_port,
    }
    inherited = {name: value for name, value in os.environ.items() if name != REQUEUE_FILE_VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-m", "finetune", JOIN_COMMAND, str(run_dir)],
        env={
            **inherited,  # rank 0 alone asks to be started again
            "OMP_NUM_THREADS": str(_compute_num_threads(launch.world_size)),
            **{name: str(value) for name, value in variables.items()},
        },
        stdout=subprocess.DEVNULL,
    )


def _compute_num_threads(world_size: int) -> int:
    """Return how many a process may have, so that those of all do not outnumber the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else max(1, count_available_cores() // world_size)


def _wait_for_exit_code(child: subprocess.Popen[bytes]) -> int:
    """Return what a process exits with, which has nothing more to do."""
    try:
        return child.wait(_EXIT_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TrainingError(
            f"A process of the run (pid {child.pid}) did not end within {_EXIT_TIMEOUT_SECONDS} s of the "
            f"others. The last checkpoint is whole; go on with --resume."
        ) from error


def _check_children(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Raise if a process has ended that should wait for the others."""
    codes = [code for child in children if (code := child.poll()) is not None]
    if codes:
        raise _explain_exit_codes(codes)


def _explain_exit_codes(codes: Sequence[int]) -> StopRequest | TrainingError:
    """Return what the exit codes of processes mean for this one."""
    for code in codes:
        # one that was asked to stop before it had met the others could tell nobody
        signum = _EXIT_CODE_SIGNALS.get(code, -code)
        if signum in STOP_SIGNALS:
            return StopRequest(signum)
    said = ", ".join(map(str, codes))
    return TrainingError(f"Processes of the run ended with codes {said}; see their messages.")


def _kill_children(children: Sequence[subprocess.Popen[bytes]], grace_seconds: float) -> None:
    end = time.monotonic() + grace_seconds
    while time.monotonic() < end and any(child.poll() is None for child in children):
        time.sleep(0.05)
    for child in children:
        child.kill()
        child.wait()
