"""Processes wait for each other as long as they live, and never for one that is gone."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any, cast

import pytest
from torch._C._distributed_c10d import HashStore, Store, TCPStore
from torch.distributed import DistStoreError

from finetune.distributed import rendezvous as meeting
from finetune.distributed import signals
from finetune.distributed import store_client as line
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.peer_errors import PeerFailedError, explain_peer_loss
from finetune.distributed.rendezvous import Rendezvous, propagate_failures
from finetune.distributed.reporter import PeerCheckingReporter
from finetune.distributed.signals import StopRequest
from finetune.errors import DataError, TrainingError
from finetune.types import Reporter


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(meeting, "_POLL_SECONDS", 0.02)


@pytest.fixture
def store() -> Store:
    """Return a store within this process, which behaves as the one over the network."""
    return HashStore()


def one_of(rank: int, world_size: int, store: Store, *, seconds: float = 0.5) -> Rendezvous:
    launch = LaunchInfo(rank, world_size, rank, world_size, 0, "127.0.0.1", 0, "environment")
    return Rendezvous(launch, lambda: store, timeout=timedelta(seconds=seconds))


@contextmanager
def later(seconds: float, function: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Call a function on another thread, which ends before the block is left."""
    thread = threading.Timer(seconds, function, args=arguments)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.fixture
def both(store: Store) -> Iterator[tuple[Rendezvous, Rendezvous]]:
    first, second = one_of(0, 2, store), one_of(1, 2, store)
    yield first, second
    first.close()
    second.close()


def test_what_is_told_is_heard(both: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = both
    told = {"run_dir": "x", "ü": [1, None]}
    with later(0.1, first.broadcast, "run", told):
        assert second.receive("run") == told


def test_who_hands_something_out_stays_until_all_have_it(
    both: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = both
    heard: list[float] = []

    def late() -> None:
        time.sleep(0.4)
        second.receive("run")
        heard.append(time.monotonic())

    thread = threading.Thread(target=late)
    thread.start()
    start = time.monotonic()
    first.broadcast("run", None)
    assert time.monotonic() - start >= 0.35
    thread.join()
    assert heard


def test_one_that_lives_is_waited_for_longer_than_the_timeout(
    both: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = both
    start = time.monotonic()
    with later(1.2, first.broadcast, "run", 1):
        assert second.receive("run") == 1
    assert time.monotonic() - start > 1.1  # and the timeout is 0.5 s


def test_one_that_gives_no_sign_of_life_is_given_up(both: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = both
    time.sleep(0.1)
    first.close()
    with pytest.raises(TrainingError, match=r"Rank 0 ended, or gives no sign of life for 0"):
        second.receive("run")


class Frozen:
    """A store whose machine was cut off: it answers until it does not, and nobody is told."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.is_cut = threading.Event()

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            while self.is_cut.is_set():
                time.sleep(0.05)
            return getattr(self.store, name)(*arguments)

        return ask


def test_a_store_that_no_longer_answers_is_given_up(store: Store) -> None:
    frozen = Frozen(store)
    launch = LaunchInfo(1, 2, 1, 2, 0, "127.0.0.1", 0, "environment")
    met = Rendezvous(launch, lambda: cast(Store, frozen), timeout=timedelta(seconds=0.5))
    threading.Timer(0.2, frozen.is_cut.set).start()
    first = one_of(0, 2, store)
    start = time.monotonic()
    with pytest.raises(TrainingError, match="Rank 0 ended, or gives no sign of life"):
        met.receive("run")
    assert time.monotonic() - start < 5
    met.close()
    first.close()
    frozen.is_cut.clear()


def test_a_signal_is_heard_while_nobody_answers(store: Store) -> None:
    def never() -> Store:
        time.sleep(5)
        return store

    launch = LaunchInfo(1, 2, 1, 2, 0, "127.0.0.1", 0, "environment")
    threading.Timer(0.3, os.kill, args=[os.getpid(), signal.SIGTERM]).start()
    start = time.monotonic()
    with pytest.raises(StopRequest), signals.allow_interrupts():
        Rendezvous(launch, never, timeout=timedelta(seconds=60))
    assert time.monotonic() - start < 4


def _quietly(function: Callable[..., None], *arguments: object) -> None:
    with suppress(TrainingError, StopRequest):
        function(*arguments)


def test_one_that_never_came_is_named(store: Store) -> None:
    alone = one_of(0, 3, store)
    second = one_of(1, 3, store, seconds=30)
    waiting = threading.Thread(target=_quietly, args=[second.barrier, "here"], daemon=True)
    waiting.start()
    with pytest.raises(TrainingError, match=r"Rank 2 of 3 did not start within 0"):
        alone.barrier("here")
    alone.close()
    second.close()


def test_a_rank_that_is_lost_is_named_although_one_before_it_is_late(store: Store) -> None:
    first, second, third = (one_of(rank, 3, store) for rank in range(3))
    time.sleep(0.1)
    third.close()
    start = time.monotonic()
    with pytest.raises(TrainingError, match=r"Rank 2 ended, or gives no sign of life"):
        first.barrier("ready")  # rank 1 lives, and is busy
    assert time.monotonic() - start < 2
    first.close()
    second.close()


def work(on_image: Callable[[], None], *, seconds: float = 5) -> None:
    """Do something for some seconds, and tell of each image."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        on_image()
        time.sleep(0.02)


def test_who_works_on_finds_out_that_another_has_failed(
    both: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = both
    shown: list[int] = []

    class Shown(Reporter):
        def advance(self, steps: int = 1) -> None:
            shown.append(steps)

    reporter = PeerCheckingReporter(Shown(), second)
    work(reporter.advance, seconds=0.2)
    assert shown
    first.report_failure(DataError("no images"))
    with pytest.raises(PeerFailedError, match="no images"):
        work(reporter.advance)


def test_who_works_on_finds_out_that_another_is_lost(both: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = both
    time.sleep(0.1)
    second.close()
    with pytest.raises(TrainingError, match="Rank 1 ended"):
        work(first.check_peers)


def test_who_has_left_looks_after_nobody(both: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = both
    second.report_failure(DataError("no images"))
    first.close()
    time.sleep(0.05)
    first.check_peers()


def test_nothing_begins_before_each_has_given_a_sign_of_life(store: Store) -> None:
    first = one_of(0, 2, store)
    with pytest.raises(TrainingError, match=r"Rank 1 of 2 did not start within"):
        first.wait_for_peers()
    second = one_of(1, 2, store)
    time.sleep(0.1)
    first.wait_for_peers()
    first.close()
    second.close()


def test_everyone_waits_for_the_last(store: Store) -> None:
    came: list[int] = []
    late = 0.3

    def come(met: Rendezvous) -> None:
        time.sleep(late * (met.launch.rank == 2))
        met.barrier("ready")
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
    both: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = both
    with pytest.raises(DataError, match="no images"), propagate_failures(second):
        raise DataError("no images")
    with pytest.raises(PeerFailedError, match=r"Rank 1 failed: no images") as caught:
        first.barrier("ready")
    assert caught.value.exit_code == DataError.exit_code


def test_one_that_leaves_after_it_came_keeps_all_from_going_on(
    both: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = both
    with (
        pytest.raises(StopRequest),
        signals.allow_interrupts(),
        propagate_failures(second),
        signals.defer(),
        later(0.2, os.kill, os.getpid(), signal.SIGTERM),
    ):
        second.barrier("ready")
    # it said that it was ready, and rank 0 comes only now
    with pytest.raises(StopRequest, match="SIGTERM"):
        first.barrier("ready")


def test_one_that_is_asked_to_stop_when_all_go_on_goes_on_too(
    both: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = both
    second._publish("ready/1", None)
    first.barrier("ready")
    came: list[int] = []
    with (
        pytest.raises(StopRequest),
        signals.allow_interrupts(),
        signals.defer(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        second.barrier("ready")  # the ranks agree on the stop after their first step
        came.append(signals.get_pending_signal())
    assert came == [signal.SIGTERM]


def test_the_others_stay_until_the_first_has_finished(both: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = both
    start = time.monotonic()
    with later(0.8, first.depart):
        second.depart()
    assert time.monotonic() - start >= 0.75


def test_who_waits_for_the_end_is_told_that_it_failed(both: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = both
    with (
        later(0.2, first.report_failure, DataError("gone")),
        pytest.raises(PeerFailedError, match="gone"),
    ):
        second.depart()


def test_the_first_does_not_wait_for_ever_for_one_that_is_lost(
    both: tuple[Rendezvous, Rendezvous], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "_DEPART_TIMEOUT_SECONDS", 0.3)
    both[0].depart()


def test_a_group_that_one_never_joins_is_a_lost_process() -> None:
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(DistStoreError) as caught:
        store.get("never")
    explained = explain_peer_loss(caught.value)
    assert explained is not None
    assert str(explained).startswith("Another process of the run ended before its time")
    assert explain_peer_loss(RuntimeError("NCCL error: invalid usage, Duplicate GPU")) is None


def test_a_stop_of_one_stops_the_others(both: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = both
    with pytest.raises(StopRequest), propagate_failures(first):
        raise StopRequest(15)
    with pytest.raises(StopRequest, match="SIGTERM") as caught:
        second.receive("run")
    assert caught.value.signum == 15


def test_who_waits_finds_out_that_a_process_it_started_has_ended(store: Store) -> None:
    def watch() -> None:
        raise TrainingError("codes [4]")

    launch = LaunchInfo(0, 2, 0, 2, 0, "127.0.0.1", 0, "environment")
    met = Rendezvous(launch, lambda: store, timeout=timedelta(seconds=30), health_check=watch)
    with pytest.raises(TrainingError, match="codes"):
        met.barrier("ready")
    met.close()


def test_an_address_that_nobody_answers_at_is_explained() -> None:
    launch = LaunchInfo(1, 2, 1, 2, 0, "127.0.0.1", 9, "environment")
    with (
        pytest.raises(TrainingError, match=r"Cannot reach rank 0 at 127\.0\.0\.1:9: .*MASTER_PORT"),
        meeting.join_rendezvous(launch, timeout=timedelta(seconds=1)),
    ):
        raise AssertionError
