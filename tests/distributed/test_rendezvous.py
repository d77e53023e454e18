"""Rendezvous: waits for processes that live, however long, and never for a lost one."""

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

from finetune.distributed import signals
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.peer_errors import PeerFailedError, PeerLostError, explain_peer_loss
from finetune.distributed.rendezvous import Rendezvous
from finetune.distributed.signals import StopRequest
from finetune.errors import DataError, TrainingError
from finetune.types import Reporter

TIMEOUT_SECONDS = 0.5


@pytest.fixture
def store() -> Store:
    """Return a store within this process, which behaves like one over the network."""
    return HashStore()


def make_rendezvous(
    rank: int,
    world_size: int,
    connect: Callable[[], Any],
    *,
    seconds: float = TIMEOUT_SECONDS,
    health_check: Callable[[], None] = lambda: None,
) -> Rendezvous:
    """Return a rendezvous with short intervals."""
    return Rendezvous(
        LaunchInfo(rank, world_size, rank, world_size, 0, "127.0.0.1", 0, "environment"),
        timeout=timedelta(seconds=seconds),
        connect=cast(Callable[[], Store], connect),
        health_check=health_check,
        poll_seconds=0.02,
        heartbeat_seconds=0.05,
    )


@contextmanager
def run_later(seconds: float, function: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Call a function on another thread, which ends before the block is left."""
    thread = threading.Timer(seconds, function, args=arguments)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.fixture
def ranks(store: Store) -> Iterator[tuple[Rendezvous, Rendezvous]]:
    """Return the rendezvous of ranks 0 and 1."""
    first, second = make_rendezvous(0, 2, lambda: store), make_rendezvous(1, 2, lambda: store)
    yield first, second
    first.close()
    second.close()


def fail(rendezvous: Rendezvous, error: BaseException) -> None:
    """End a process with an error."""
    with suppress(type(error)), rendezvous:
        raise error


def test_rendezvous_broadcast_is_received(ranks: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = ranks
    value = {"run_dir": "x", "ü": [1, None]}
    with run_later(0.1, first.broadcast, "run", value):
        assert second.receive("run") == value


def test_rendezvous_broadcast_returns_after_all_have_received(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = ranks
    order: list[str] = []

    def receive_late() -> None:
        time.sleep(0.4)
        order.append("received")
        second.receive("run")

    with run_later(0.0, receive_late):
        first.broadcast("run", None)
        order.append("returned")
    assert order == ["received", "returned"]


def test_rendezvous_live_peer_is_waited_for_longer_than_timeout(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = ranks
    with run_later(2.4 * TIMEOUT_SECONDS, first.broadcast, "run", 1):
        assert second.receive("run") == 1


def test_rendezvous_peer_without_heartbeat_raises_training_error(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = ranks
    time.sleep(0.1)
    first.close()
    with pytest.raises(TrainingError, match=r"Rank 0 .* heartbeat for 0 s"):
        second.receive("run")


class FreezableStore:
    """Store whose node can be cut off: its requests then do not return, and raise nothing."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.is_frozen = threading.Event()

    def __getattr__(self, name: str) -> Any:
        def request(*arguments: Any) -> Any:
            while self.is_frozen.is_set():
                time.sleep(0.05)
            return getattr(self.store, name)(*arguments)

        return request


def test_rendezvous_store_stops_responding_raises_training_error(store: Store) -> None:
    frozen = FreezableStore(store)
    second = make_rendezvous(1, 2, lambda: frozen)
    first = make_rendezvous(0, 2, lambda: store)
    with (
        run_later(0.2, frozen.is_frozen.set),
        pytest.raises(TrainingError, match=r"Rank 0 .* heartbeat for 0 s"),
    ):
        second.receive("run")
    second.close()
    first.close()
    frozen.is_frozen.clear()


def test_rendezvous_signal_while_store_does_not_respond_raises_stop_request(store: Store) -> None:
    is_open = threading.Event()

    def connect() -> Store:
        is_open.wait(30)
        return store

    with (
        run_later(0.3, os.kill, os.getpid(), signal.SIGTERM),
        pytest.raises(StopRequest, match="SIGTERM"),
        signals.allow_interrupts(),
    ):
        make_rendezvous(1, 2, connect, seconds=60)
    assert not is_open.is_set(), "the signal did not wait for the store"
    is_open.set()


def test_rendezvous_peer_never_started_is_named(store: Store) -> None:
    def wait_quietly() -> None:
        with suppress(TrainingError, StopRequest):
            second.barrier("here")

    first = make_rendezvous(0, 3, lambda: store)
    second = make_rendezvous(1, 3, lambda: store, seconds=30)
    threading.Thread(target=wait_quietly, daemon=True).start()
    with pytest.raises(TrainingError, match=r"Rank 2 of 3 .* 0 s.*collective_timeout_seconds"):
        first.barrier("here")
    first.close()
    second.close()


def test_rendezvous_lost_peer_is_named_while_another_is_late(store: Store) -> None:
    first, second, third = (make_rendezvous(rank, 3, lambda: store) for rank in range(3))
    time.sleep(0.1)
    third.close()
    with pytest.raises(TrainingError, match=r"Rank 2 .* heartbeat"):
        first.barrier("ready")  # rank 1 lives and never arrives
    first.close()
    second.close()


def work_until_error(on_image: Callable[[], None], *, seconds: float = 5) -> None:
    """Report images for some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        on_image()
        time.sleep(0.02)


class StepReporter(Reporter):
    """Reporter that records progress."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def advance(self, steps: int = 1) -> None:
        self.steps.append(steps)


def test_check_peers_on_advance_peer_fails_raises_peer_failed_error(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = ranks
    reporter = StepReporter()
    with second.check_peers_on_advance(reporter):
        work_until_error(reporter.advance, seconds=0.2)
        assert reporter.steps
        fail(first, DataError("no images"))
        with pytest.raises(PeerFailedError, match="no images"):
            work_until_error(reporter.advance)
    num_steps = len(reporter.steps)
    reporter.advance(3)
    assert reporter.steps[num_steps:] == [3], "after the block no peer is checked"


def test_check_peers_peer_without_heartbeat_raises_training_error(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = ranks
    time.sleep(0.1)
    second.close()
    with pytest.raises(TrainingError, match=r"Rank 1 .* heartbeat"):
        work_until_error(first.check_peers)


def test_check_peers_on_advance_closed_rendezvous_checks_no_peer(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = ranks
    reporter = StepReporter()
    with first.check_peers_on_advance(reporter):
        fail(second, DataError("no images"))
        first.close()
        time.sleep(0.05)
        reporter.advance()
    assert reporter.steps == [1]


def test_wait_for_peers_returns_after_first_heartbeat_of_each(store: Store) -> None:
    first = make_rendezvous(0, 2, lambda: store)
    with pytest.raises(TrainingError, match=r"Rank 1 of 2 .* 0 s"):
        first.wait_for_peers()
    second = make_rendezvous(1, 2, lambda: store)
    time.sleep(0.1)
    first.wait_for_peers()
    first.close()
    second.close()


def test_barrier_waits_for_last_rank(store: Store) -> None:
    events: list[str] = []

    def arrive(rendezvous: Rendezvous) -> None:
        if rendezvous.launch.rank == 2:
            time.sleep(0.3)
            events.append("last arrives")
        rendezvous.barrier("ready")
        events.append(f"rank {rendezvous.launch.rank} proceeds")

    with ExitStack() as stack:
        for rank in range(3):
            rendezvous = make_rendezvous(rank, 3, lambda: store, seconds=30)
            stack.callback(rendezvous.close)
            thread = threading.Thread(target=arrive, args=[rendezvous])
            thread.start()
            stack.callback(thread.join)
    assert events[0] == "last arrives"
    assert sorted(events[1:]) == [f"rank {rank} proceeds" for rank in range(3)]


def test_rendezvous_peer_fails_raises_peer_failed_error_with_its_exit_code(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = ranks
    error = DataError("no images\nand more")
    with pytest.raises(DataError), second:
        raise error
    assert error.is_published
    with pytest.raises(PeerFailedError, match=r"Rank 1 .*: no images$") as caught:
        first.barrier("ready")
    assert caught.value.exit_code == DataError.exit_code
    assert caught.value.is_from_peer


def test_rendezvous_peer_lost_error_is_not_published(ranks: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = ranks
    fail(second, PeerLostError("rank 2"))
    with pytest.raises(TrainingError, match=r"Rank 1 .* heartbeat"):
        first.barrier("ready")


def test_barrier_peer_leaves_after_arrival_stops_all(ranks: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = ranks
    with (
        pytest.raises(StopRequest),
        signals.allow_interrupts(),
        second,
        signals.defer(),
        run_later(0.2, os.kill, os.getpid(), signal.SIGTERM),
    ):
        second.barrier("ready")
    # rank 1 had published its arrival before rank 0 arrives
    with pytest.raises(StopRequest, match="SIGTERM"):
        first.barrier("ready")


def test_barrier_signal_after_all_proceed_is_deferred(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = ranks
    second._publish("ready/1", None)
    first.barrier("ready")
    pending: list[int] = []
    with (  # noqa: PT012
        pytest.raises(StopRequest),
        signals.allow_interrupts(),
        signals.defer(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        second.barrier("ready")  # the ranks agree on the stop after their first step
        pending.append(signals.get_pending_signal())
    assert pending == [signal.SIGTERM]


def test_depart_other_rank_waits_for_first(ranks: tuple[Rendezvous, Rendezvous]) -> None:
    first, second = ranks
    order: list[str] = []

    def depart_late() -> None:
        order.append("first departs")
        first.depart()

    with run_later(0.8, depart_late):
        second.depart()
        order.append("second departs")
    assert order == ["first departs", "second departs"]


def test_depart_first_rank_fails_raises_peer_failed_error(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = ranks
    with (
        run_later(0.2, fail, first, DataError("gone")),
        pytest.raises(PeerFailedError, match="gone"),
    ):
        second.depart()


def test_depart_lost_peer_first_rank_returns_after_timeout(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    ranks[0].depart(timeout_seconds=0.3)


def test_explain_peer_loss_store_timeout_is_lost_peer() -> None:
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(DistStoreError) as caught:
        store.get("never")
    explained = explain_peer_loss(caught.value)
    assert isinstance(explained, PeerLostError)
    assert "--resume" in str(explained)
    assert explain_peer_loss(RuntimeError("NCCL error: invalid usage, Duplicate GPU")) is None


def test_rendezvous_peer_receives_signal_raises_stop_request(
    ranks: tuple[Rendezvous, Rendezvous],
) -> None:
    first, second = ranks
    fail(first, StopRequest(15))
    with pytest.raises(StopRequest, match="SIGTERM") as caught:
        second.receive("run")
    assert caught.value.signum == 15


def test_barrier_health_check_raises_while_waiting(store: Store) -> None:
    def raise_exit_code() -> None:
        raise TrainingError("codes 4")

    rendezvous = make_rendezvous(0, 2, lambda: store, seconds=30, health_check=raise_exit_code)
    with pytest.raises(TrainingError, match="codes 4"):
        rendezvous.barrier("ready")
    rendezvous.close()


def test_rendezvous_unreachable_address_raises_training_error() -> None:
    launch = LaunchInfo(1, 2, 1, 2, 0, "127.0.0.1", 9, "environment")
    with pytest.raises(TrainingError, match=r"rank 0 at 127\.0\.0\.1:9: .*MASTER_PORT"):
        Rendezvous(launch, timeout=timedelta(seconds=1))
