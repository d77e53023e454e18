"""Rounds of a cross-validation: other ranks wait between two runs for as long as rank 0 works."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import HashStore

from finetune.commands.cross_validation.rounds import Rounds
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.peer_errors import PeerFailedError
from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import DataError
from finetune.types import Reporter

NAMES = ["1", "2", "refit"]
TIMEOUT_SECONDS = 0.4


def run_ranks(*functions: Callable[[Rounds], None]) -> list[Exception | None]:
    """Call a function with the rounds of each rank at the same time; return their errors."""
    store = HashStore()
    errors: list[Exception | None] = [None] * len(functions)

    def run_rank(rank: int) -> None:
        world_size = len(functions)
        first = Rendezvous(
            LaunchInfo(rank, world_size, rank, world_size, 0, "127.0.0.1", 0, "environment"),
            timeout=timedelta(seconds=TIMEOUT_SECONDS),
            connect=lambda: store,
            poll_seconds=0.02,
            heartbeat_seconds=0.05,
        )
        first.close()
        try:
            with Rounds(first, NAMES) as rounds:
                functions[rank](rounds)
        except Exception as error:
            errors[rank] = error

    threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def join_all(rounds: Rounds) -> None:
    """Receive what rank 0 broadcasts in each round."""
    for name in NAMES:
        with rounds.enter_next(Reporter()) as rendezvous:
            assert rendezvous is not None
            assert rendezvous.receive("run") == name


@pytest.mark.parametrize("slow", NAMES)
def test_other_ranks_wait_for_work_before_a_round(slow: str) -> None:
    def work(rounds: Rounds) -> None:
        for name in NAMES:
            if name == slow:
                time.sleep(2 * TIMEOUT_SECONDS)
            with rounds.enter_next(Reporter()) as rendezvous:
                assert rendezvous is not None
                rendezvous.broadcast("run", name)

    assert run_ranks(work, join_all, join_all) == [None, None, None]


def test_error_between_two_rounds_reaches_the_other_ranks() -> None:
    def fail(rounds: Rounds) -> None:
        with rounds.enter_next(Reporter()) as rendezvous:
            assert rendezvous is not None
            rendezvous.broadcast("run", NAMES[0])
        raise DataError("photo.jpg cannot be read")

    own, other = run_ranks(fail, join_all)
    assert isinstance(own, DataError)
    assert isinstance(other, PeerFailedError)
    assert "photo.jpg cannot be read" in str(other)


def test_single_process_has_no_rendezvous() -> None:
    with Rounds(None, NAMES) as rounds, rounds.enter_next(Reporter()) as rendezvous:
        assert rendezvous is None
