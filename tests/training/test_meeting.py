"""Processes wait for each other as long as they live, and never for one that is gone."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import HashStore, Store

from finetune.errors import DataError, TrainingError
from finetune.signals import StopRequest
from finetune.training import meeting
from finetune.training.launch import Launch
from finetune.training.meeting import Meeting, PeerError, telling


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(meeting, "_LOOK_SECONDS", 0.02)


@pytest.fixture
def store() -> Store:
    """Return a store within this process, which behaves as the one over the network."""
    return HashStore()


def one_of(rank: int, world_size: int, store: Store, *, seconds: float = 0.5) -> Meeting:
    launch = Launch(rank, world_size, rank, world_size, 0, "127.0.0.1", 0, "environment")
    return Meeting(launch, store, timeout=timedelta(seconds=seconds))


@pytest.fixture
def both(store: Store) -> Iterator[tuple[Meeting, Meeting]]:
    first, second = one_of(0, 2, store), one_of(1, 2, store)
    yield first, second
    first.close()
    second.close()


def test_what_is_told_is_heard(both: tuple[Meeting, Meeting]) -> None:
    first, second = both
    threading.Timer(0.1, first.tell, args=["run", {"run_dir": "x", "ü": [1, None]}]).start()
    assert second.hear("run", rank=0) == {"run_dir": "x", "ü": [1, None]}


def test_one_that_lives_is_waited_for_longer_than_the_timeout(
    both: tuple[Meeting, Meeting],
) -> None:
    first, second = both
    start = time.monotonic()
    threading.Timer(1.2, first.tell, args=["run", 1]).start()
    assert second.hear("run", rank=0) == 1
    assert time.monotonic() - start > 1.1  # and the timeout is 0.5 s


def test_one_that_gives_no_sign_of_life_is_given_up(both: tuple[Meeting, Meeting]) -> None:
    first, second = both
    time.sleep(0.1)
    first.close()
    with pytest.raises(TrainingError, match=r"Rank 0 ended, or gives no sign of life for 0"):
        second.hear("run", rank=0)


def test_one_that_never_came_is_named(store: Store) -> None:
    alone = one_of(0, 3, store)
    second = one_of(1, 3, store)
    second.tell("here/1", None)
    with pytest.raises(TrainingError, match=r"Rank 2 of 3 did not start within 0"):
        alone.everyone("here")
    alone.close()
    second.close()


def test_everyone_waits_for_the_last(store: Store) -> None:
    came: list[int] = []
    late = 0.3

    def come(met: Meeting) -> None:
        time.sleep(late * (met.launch.rank == 2))
        met.everyone("ready")
        came.append(met.launch.rank)

    start = time.monotonic()
    with ExitStack() as stack:
        for rank in range(3):
            met = one_of(rank, 3, store, seconds=30)
            stack.callback(met.close)
            thread = threading.Thread(target=come, args=[met])
            thread.start()
            stack.callback(thread.join)
    assert sorted(came) == [0, 1, 2]
    assert time.monotonic() - start >= late


def test_an_error_of_one_ends_the_others_at_once_with_its_code(
    both: tuple[Meeting, Meeting],
) -> None:
    first, second = both
    with pytest.raises(DataError, match="no images"), telling(second):
        raise DataError("no images")
    with pytest.raises(PeerError, match=r"Rank 1 failed; its own message says why") as caught:
        first.hear("anything", rank=1)
    assert caught.value.exit_code == DataError.exit_code


def test_a_stop_of_one_stops_the_others(both: tuple[Meeting, Meeting]) -> None:
    first, second = both
    with pytest.raises(StopRequest), telling(first):
        raise StopRequest(15)
    with pytest.raises(StopRequest, match="SIGTERM") as caught:
        second.hear("run", rank=0)
    assert caught.value.signum == 15


def test_who_waits_finds_out_that_a_process_it_started_has_ended(store: Store) -> None:
    def watch() -> None:
        raise TrainingError("codes [4]")

    launch = Launch(0, 2, 0, 2, 0, "127.0.0.1", 0, "environment")
    met = Meeting(launch, store, timeout=timedelta(seconds=30), watch=watch)
    with pytest.raises(TrainingError, match="codes"):
        met.hear("ready/1", rank=1)
    met.close()


def test_an_address_that_nobody_answers_at_is_explained() -> None:
    launch = Launch(1, 2, 1, 2, 0, "127.0.0.1", 9, "environment")
    with (
        pytest.raises(TrainingError, match=r"Cannot reach rank 0 at 127\.0\.0\.1:9: .*MASTER_PORT"),
        meeting.meeting(launch, timeout=timedelta(seconds=1)),
    ):
        raise AssertionError
