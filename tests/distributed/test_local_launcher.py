"""The processes that a run starts on its own machine end with it, and are told of."""

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
from tests.support.processes import joined_by
from tests.support.runs import small_config

MINUTE = timedelta(seconds=60)


def test_an_error_here_ends_the_others_and_leaves_the_environment(tmp_path: Path) -> None:
    before = dict(os.environ)
    start = time.monotonic()
    with (
        pytest.raises(ZeroDivisionError),
        launch_local_workers(tmp_path, num_workers=2, timeout=MINUTE) as met,
    ):
        assert (met.launch.rank, met.launch.world_size, met.launch.local_world_size) == (0, 3, 3)
        raise ZeroDivisionError
    assert time.monotonic() - start < 10
    assert dict(os.environ) == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process in /proc")
@pytest.mark.parametrize(
    ("signum", "seconds"),
    [
        (signal.SIGTERM, 0.0),
        pytest.param(signal.SIGTERM, 0.7, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 0.7, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_asked_to_stop_before_it_has_met_the_others_stops_them(
    signum: signal.Signals, seconds: float, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(small_config()))
    (tmp_path / "manifest.csv").touch()
    with (
        pytest.raises(StopRequest, match=signum.name),
        launch_local_workers(tmp_path, num_workers=1, timeout=MINUTE) as met,
    ):
        (child,) = joined_by(os.getpid())
        time.sleep(seconds)
        os.kill(child, signum)
        met.barrier("ready")


@pytest.mark.slow
def test_a_failed_process_is_an_error_also_where_this_one_ended_well(tmp_path: Path) -> None:
    # the folder holds no run to join
    with (
        pytest.raises(TrainingError, match=r"codes 5"),
        launch_local_workers(tmp_path, num_workers=1, timeout=MINUTE),
    ):
        pass


@pytest.mark.slow
def test_who_waits_for_a_failed_process_does_not_wait_long(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError, match=r"codes 5"),
        launch_local_workers(tmp_path, num_workers=1, timeout=MINUTE) as met,
    ):
        met.barrier("ready")
