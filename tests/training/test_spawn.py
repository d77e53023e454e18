"""The processes that a run starts on its own machine end with it, and are told of."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from finetune.errors import TrainingError
from finetune.training.spawn import own_meeting

MINUTE = timedelta(seconds=60)


def test_an_error_here_ends_the_others_and_leaves_the_environment(tmp_path: Path) -> None:
    before = dict(os.environ)
    start = time.monotonic()
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError),
        own_meeting(tmp_path, count=2, timeout=MINUTE) as met,
    ):
        assert (met.launch.rank, met.launch.world_size, met.launch.local_world_size) == (0, 3, 3)
        raise ZeroDivisionError
    assert time.monotonic() - start < 10
    assert dict(os.environ) == before


@pytest.mark.slow
def test_a_failed_process_is_an_error_also_where_this_one_ended_well(tmp_path: Path) -> None:
    # the folder holds no run to join
    with (
        pytest.raises(TrainingError, match=r"codes \[5\]"),
        own_meeting(tmp_path, count=1, timeout=MINUTE),
    ):
        pass


@pytest.mark.slow
def test_who_waits_for_a_failed_process_does_not_wait_long(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError, match=r"codes \[5\]"),
        own_meeting(tmp_path, count=1, timeout=MINUTE) as met,
    ):
        met.everyone("ready")
