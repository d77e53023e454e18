"""Local launcher: starts the other processes of a run on this node, without torchrun or srun."""

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
from finetune.distributed.rendezvous import Rendezvous
from finetune.distributed.signals import REQUEUE_FILE_VARIABLE, STOP_SIGNALS, StopRequest
from finetune.errors import INTERRUPTED_EXIT_CODE, PREEMPTED_EXIT_CODE, TrainingError
from finetune.system.host import count_available_cores

_EXIT_TIMEOUT_SECONDS = 120
_STOP_GRACE_SECONDS = 20
_EXIT_CODE_SIGNALS = {INTERRUPTED_EXIT_CODE: signal.SIGINT, PREEMPTED_EXIT_CODE: signal.SIGTERM}


@contextmanager
def launch_local_workers(
    run_dir: Path, *, num_workers: int, timeout: timedelta
) -> Iterator[Rendezvous]:
    """Start worker processes that join a run, yield their rendezvous, and wait for their end.

    Args:
        run_dir: Run folder that the workers join.
        num_workers: Number of processes besides this one, which is rank 0.
        timeout: Time without heartbeats after which a process counts as lost.

    Raises:
        TrainingError: A worker failed, even if this process succeeded.
    """
    world_size = num_workers + 1
    store = TCPStore(
        "127.0.0.1", 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False
    )
    launch = LaunchInfo(0, world_size, 0, world_size, 0, "127.0.0.1", store.port, "environment")
    workers = [_start_worker(launch, rank, run_dir) for rank in range(1, world_size)]
    grace_seconds, num_threads = 0.0, torch.get_num_threads()
    try:
        torch.set_num_threads(_compute_num_threads(world_size))
        rendezvous = Rendezvous(
            launch,
            timeout=timeout,
            connect=lambda: store,
            health_check=lambda: _check_workers(workers),
        )
        with rendezvous:
            yield rendezvous
            rendezvous.depart()  # the rest is the work of this process alone
        if any(exit_codes := [_wait_for_exit_code(worker) for worker in workers]):
            raise _explain_exit_codes(exit_codes)
    except StopRequest:
        grace_seconds = _STOP_GRACE_SECONDS  # the workers save and stop, too
        raise
    finally:
        torch.set_num_threads(num_threads)
        with signals.defer():
            _kill_workers(workers, grace_seconds)


def _start_worker(launch: LaunchInfo, rank: int, run_dir: Path) -> subprocess.Popen[bytes]:
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": launch.world_size,
        "LOCAL_WORLD_SIZE": launch.world_size,
        "MASTER_ADDR": launch.master_addr,
        "MASTER_PORT": launch.master_port,
    }
    # rank 0 alone requests the requeueing
    inherited = {name: value for name, value in os.environ.items() if name != REQUEUE_FILE_VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-m", "finetune", JOIN_COMMAND, str(run_dir)],
        env={
            **inherited,
            "OMP_NUM_THREADS": str(_compute_num_threads(launch.world_size)),
            **{name: str(value) for name, value in variables.items()},
        },
        stdout=subprocess.DEVNULL,
    )


def _compute_num_threads(world_size: int) -> int:
    """Return the threads of a process: OMP_NUM_THREADS, or its part of the available cores."""
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdecimal():
        return int(requested)
    return max(1, count_available_cores() // world_size)


def _wait_for_exit_code(worker: subprocess.Popen[bytes]) -> int:
    """Wait for a worker that has finished its work, and return its exit code."""
    try:
        return worker.wait(_EXIT_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TrainingError(
            f"A worker process of the run (pid {worker.pid}) did not exit within "
            f"{_EXIT_TIMEOUT_SECONDS} s after the end of the training. The last checkpoint is "
            f"complete; resume with --resume."
        ) from error


def _check_workers(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Raise if a worker has ended that should wait for the other ranks."""
    exit_codes = [code for worker in workers if (code := worker.poll()) is not None]
    if exit_codes:
        raise _explain_exit_codes(exit_codes)


def _explain_exit_codes(exit_codes: Sequence[int]) -> StopRequest | TrainingError:
    """Return the error of this process for the exit codes of its workers."""
    for code in exit_codes:
        # a worker that received a stop signal before the rendezvous could not publish it
        signum = _EXIT_CODE_SIGNALS.get(code, -code)
        if signum in STOP_SIGNALS:
            return StopRequest(signum)
    codes = ", ".join(map(str, exit_codes))
    return TrainingError(
        f"Worker processes of the run ended with exit codes {codes}; see their messages."
    )


def _kill_workers(workers: Sequence[subprocess.Popen[bytes]], grace_seconds: float) -> None:
    end = time.monotonic() + grace_seconds
    while time.monotonic() < end and any(worker.poll() is None for worker in workers):
        time.sleep(0.05)
    for worker in workers:
        worker.kill()
        worker.wait()
