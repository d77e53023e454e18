"""Worker processes that run the trials of one study at the same time."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedWriter

from finetune.commands.tune.study_folder import StudyFolder
from finetune.commands.tune.trials.worker import TrialLog
from finetune.distributed.signals import REQUEUE_FILE_VARIABLE, StopRequest
from finetune.errors import TrainingError
from finetune.system.host import count_available_cores

_POLL_SECONDS = 0.5
_STOP_SECONDS = 120.0
"""Time for workers to save their trials after a stop signal."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that runs trials.

    Attributes:
        number: Number of the worker, from 1.
        process: The process.
        log: File that receives its output.
    """

    number: int
    process: "subprocess.Popen[bytes]"
    log: BufferedWriter


def run_workers(
    study: StudyFolder, *, num_jobs: int, num_trials: int, deadline: float | None, log: TrialLog
) -> None:
    """Run trials in several processes until none is left, and show those that end.

    A worker that dies leaves its trial to the others; it is an error only if trials remain.

    Args:
        study: Folder of the study.
        num_jobs: Number of processes.
        num_trials: Number of trials of the study.
        deadline: Time of ``time.monotonic`` by which the last trial should end; None for no limit.
        log: Lines on the trials that have ended.

    Raises:
        TrainingError: A worker failed and trials remain.
        KeyboardInterrupt: Stop requested; the workers have saved their trials.
    """
    workers = [
        _start_worker(study, number, num_jobs, num_trials, deadline)
        for number in range(1, num_jobs + 1)
    ]
    try:
        while any(worker.process.poll() is None for worker in workers):
            time.sleep(_POLL_SECONDS)
            log.show_new()
    except StopRequest:
        _stop(workers)
        log.show_new()
        raise
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()
            worker.log.close()
    log.show_new()
    failed = [worker for worker in workers if worker.process.returncode]
    is_complete = log.queue.count_started() >= num_trials and not log.queue.has_running_trials()
    if failed and not is_complete:
        worker = failed[0]
        path = study.get_worker_log_path(worker.number)
        raise TrainingError(
            f"Worker {worker.number} ended with exit code {worker.process.returncode}: "
            f"{_read_last_line(path.read_text(encoding='utf-8', errors='replace'))} Its output is "
            f"in {path}. Continue with: {study.resume_command}"
        )


def _start_worker(
    study: StudyFolder, number: int, num_jobs: int, num_trials: int, deadline: float | None
) -> Worker:
    command = [sys.executable, "-m", "finetune", "tune", "--resume", str(study.path)]
    command += ["--trials", str(num_trials), "--worker", str(number)]
    if deadline is not None:
        command += ["--timeout", f"{max(1.0, deadline - time.monotonic()):.0f}s"]
    log = study.get_worker_log_path(number).open("wb")
    process = subprocess.Popen(
        command,
        env=_build_environment(number, num_jobs),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    return Worker(number, process, log)


def _build_environment(number: int, num_jobs: int) -> dict[str, str]:
    """Return the environment of a worker: its part of the cores and of the GPUs."""
    variables = {key: value for key, value in os.environ.items() if key != REQUEUE_FILE_VARIABLE}
    if not variables.get("OMP_NUM_THREADS", "").isdecimal():
        variables["OMP_NUM_THREADS"] = str(max(1, count_available_cores() // num_jobs))
    if gpus := list_visible_gpus():
        variables["CUDA_VISIBLE_DEVICES"] = gpus[(number - 1) % len(gpus)]
    return variables


def list_visible_gpus() -> list[str]:
    """Return the ids of the GPUs that processes of this one see; empty without any."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def _stop(workers: Sequence[Worker]) -> None:
    """Ask the workers to save their trials, and wait for them."""
    for worker in workers:
        worker.process.terminate()
    end = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < end and any(worker.process.poll() is None for worker in workers):
        time.sleep(0.1)


def _read_last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing."
