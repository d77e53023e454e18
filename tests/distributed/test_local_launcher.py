"""Local launcher: workers end with the run, and their exit codes are reported."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest

from finetune.config.load import dump_config
from finetune.distributed.local_launcher import launch_local_workers
from finetune.distributed.signals import StopRequest
from finetune.errors import TrainingError
from tests.support.processes import find_worker_pids, wait_for_worker_pids
from tests.support.runs import create_small_config

MINUTE = timedelta(seconds=60)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_launch_local_workers_error_in_block_kills_workers_and_keeps_environment(
    tmp_path: Path,
) -> None:
    environment = dict(os.environ)
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError),
        launch_local_workers(tmp_path, num_workers=2, timeout=MINUTE) as rendezvous,
    ):
        launch = rendezvous.launch
        assert (launch.rank, launch.world_size, launch.local_world_size) == (0, 3, 3)
        wait_for_worker_pids(os.getpid(), 2)
        raise ZeroDivisionError
    assert find_worker_pids(os.getpid()) == []
    assert dict(os.environ) == environment


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process in /proc")
@pytest.mark.parametrize(
    ("signum", "seconds"),
    [
        (signal.SIGTERM, 0.0),
        pytest.param(signal.SIGTERM, 0.7, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 0.7, marks=pytest.mark.slow),
    ],
)
def test_launch_local_workers_worker_stopped_before_rendezvous_raises_stop_request(
    signum: signal.Signals, seconds: float, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(create_small_config()))
    (tmp_path / "manifest.csv").touch()
    with (  # noqa: PT012
        pytest.raises(StopRequest, match=signum.name),
        launch_local_workers(tmp_path, num_workers=1, timeout=MINUTE) as rendezvous,
    ):
        (worker_pid,) = wait_for_worker_pids(os.getpid(), 1)
        time.sleep(seconds)  # before or after the worker has installed its signal handlers
        os.kill(worker_pid, signum)
        rendezvous.barrier("ready")


@pytest.mark.slow
def test_launch_local_workers_worker_fails_after_block_raises_training_error(
    tmp_path: Path,
) -> None:
    # the folder contains no run to join: RunFolderError, exit code 5
    with (
        pytest.raises(TrainingError, match=r"codes 5\b"),
        launch_local_workers(tmp_path, num_workers=1, timeout=MINUTE),
    ):
        pass


@pytest.mark.slow
def test_launch_local_workers_worker_fails_while_waiting_raises_training_error(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(TrainingError, match=r"codes 5\b"),
        launch_local_workers(tmp_path, num_workers=1, timeout=MINUTE) as rendezvous,
    ):
        rendezvous.barrier("ready")
