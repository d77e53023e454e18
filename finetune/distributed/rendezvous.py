"""Where the processes of a run meet before they train, and how none waits for one that is gone.

Rank 0 prepares the run, each machine decodes its images: that takes from seconds to hours, and no
fixed timeout is right. Each process gives a sign of life meanwhile; one that has given none for
the timeout is taken for lost, and one that fails says so to all others.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.distributed_c10d import PrefixStore

from finetune.distributed import peer_errors as lost
from finetune.distributed import signals
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.peer_errors import PeerFailedError, PeerLostError
from finetune.distributed.signals import StopRequest
from finetune.distributed.store_client import StoreClient, explain_connection_error, open_store
from finetune.errors import FinetuneError, TrainingError

T = TypeVar("T")

_PROCEED = "all go on"

_POLL_SECONDS = 0.5
_REPORT_TIMEOUT_SECONDS = 5.0
_DEPART_TIMEOUT_SECONDS = 30.0


class Rendezvous:
    """What the processes of a run tell each other, over a store that rank 0 holds.

    Args:
        launch: This process.
        connect: Returns the store, reached by all.
        timeout: How long a process may give no sign of life.
        health_check: Called while waiting; may raise, as when a process that we started has ended.

    Raises:
        TrainingError: The store cannot be reached.
    """

    def __init__(
        self,
        launch: LaunchInfo,
        connect: Callable[[], Store],
        *,
        timeout: timedelta,
        health_check: Callable[[], None] = lambda: None,
    ) -> None:
        self.launch = launch
        self.timeout = timeout
        self.health_check = health_check
        self._is_checking_peers = True
        self._outcome_key = (
            "verdict"  # whether all go on, or who ended it; the first that says so wins
        )
        self._last_heartbeats: dict[
            int, tuple[int, float]
        ] = {}  # signs of life of a rank, and when last
        self._last_check_time = time.monotonic()
        beat = f"beats/{launch.rank}"
        self._client = StoreClient(
            connect, timeout=timeout, send_heartbeat=lambda store: store.add(beat, 1)
        )
        try:
            self._store: Store = self._client.call(lambda store: store)
        except (RuntimeError, ValueError, TimeoutError) as error:
            self._client.close()
            raise TrainingError(explain_connection_error(launch, error)) from error

    def wait_for_peers(self) -> None:
        """Wait until each of the others has given a sign of life, on rank 0.

        Raises:
            TrainingError: One did not start in time, or failed.
            StopRequest: One was asked to stop.
        """
        while not all(self._count_heartbeats(rank) for rank in self._get_peer_ranks()):
            self._check_ranks(self._get_peer_ranks())
            time.sleep(0.05)

    def broadcast(self, key: str, value: Any) -> None:
        """Tell all others, on rank 0, and wait until each has heard it, so that it may leave."""
        self._publish(key, value)
        self._wait_for_keys({rank: f"{key}/heard/{rank}" for rank in self._get_peer_ranks()})

    def receive(self, key: str) -> Any:
        """Return what rank 0 hands out, however long that takes, as long as it lives.

        Raises:
            TrainingError: It is lost, or a process failed.
            StopRequest: A process was asked to stop.
        """
        self._wait_for_keys({0: key})
        value = json.loads(self._call_store(lambda store: store.get(f"said/{key}")))
        self._publish(f"{key}/heard/{self.launch.rank}", None)
        return value

    def barrier(self, key: str) -> None:
        """Wait until every process has come here; then all go on, or none does.

        Raises:
            TrainingError: One is lost, or failed.
            StopRequest: One was asked to stop.
        """
        self._publish(f"{key}/{self.launch.rank}", None)
        if self.launch.rank == 0:
            self._wait_for_keys({rank: f"{key}/{rank}" for rank in self._get_peer_ranks()})
            self._raise_if_failed(self._decide_outcome(_PROCEED))  # one may have left, having come
            self._publish(key, None)
        else:
            self._wait_for_keys({0: key})

    def depart(self) -> None:
        """Let the others go, on rank 0; on these, wait until that happens.

        Raises:
            TrainingError: Rank 0 is lost, or failed.
            StopRequest: It was asked to stop.
        """
        if self.launch.rank > 0:
            self.receive("end")
            return
        self._publish("end", None)
        end = time.monotonic() + _DEPART_TIMEOUT_SECONDS
        while not all(self._has_key(f"said/end/heard/{rank}") for rank in self._get_peer_ranks()):
            if time.monotonic() > end:
                return  # whoever is lost by now has nothing left to do
            time.sleep(_POLL_SECONDS)

    def check_peers(self) -> None:
        """Look after the others in the middle of one's own work, as often as one likes.

        Raises:
            TrainingError: One is lost, or failed.
            StopRequest: One was asked to stop.
        """
        if self._is_checking_peers:
            self.check_waiting_peers()

    def check_waiting_peers(self) -> None:
        """Look after others that wait to be handed something, in a process group, too.

        Raises:
            TrainingError: One is lost, or failed.
            StopRequest: One was asked to stop.
        """
        if time.monotonic() - self._last_check_time > _POLL_SECONDS:
            self._check_ranks(self._get_peer_ranks() if self.launch.rank == 0 else [0])

    def report_failure(self, error: BaseException) -> None:
        """Tell those who still wait that this process ends, and why."""
        signum = error.signum if isinstance(error, StopRequest) else 0
        code = error.exit_code if isinstance(error, FinetuneError) else 1
        if isinstance(error, FinetuneError):
            error.is_published = True
        with suppress(RuntimeError, TimeoutError):
            told = self._encode_failure(signum, code, error)
            self._client.call(
                self._build_outcome_request(told), timeout_seconds=_REPORT_TIMEOUT_SECONDS
            )
            if self.launch.rank == 0:  # the store goes with this process
                time.sleep(2 * _POLL_SECONDS)

    def _encode_failure(self, signum: int, exit_code: int, error: object) -> str:
        message = str(error).partition("\n")[0]
        told = {"rank": self.launch.rank, "signum": signum, "code": exit_code, "message": message}
        return json.dumps(told)

    @contextmanager
    def open_process_group(self, *, backend: str) -> Iterator[None]:
        """Open the process group once every process has come, and close it in good order.

        From here on a process that is lost is found by the collectives, and signals are noted: all
        ranks act on them together, at the border of a batch or at the end.

        Args:
            backend: "gloo" or "nccl".
        """
        with signals.defer():
            self.barrier("ready")
            self._is_checking_peers, self._outcome_key = False, "verdict of the end"
            with lost.translate_peer_errors(), self._init_process_group(backend):
                yield
                sync_stop_request()

    @contextmanager
    def _init_process_group(self, backend: str) -> Iterator[None]:
        if backend == "nccl":  # whose collectives take place on the current one
            torch.cuda.set_device(self.launch.local_rank)
        dist.init_process_group(
            backend,
            store=PrefixStore("group", self._store),
            rank=self.launch.rank,
            world_size=self.launch.world_size,
            timeout=self.timeout,
        )
        try:
            yield
        except BaseException as error:
            # all have stopped together; otherwise NCCL could wait here for those that are gone
            if backend == "gloo" or isinstance(error, StopRequest):
                dist.destroy_process_group()
            raise
        # gloo aborts the process when the group is left to the interpreter's exit
        dist.destroy_process_group()

    def pause_heartbeat(self) -> AbstractContextManager[None]:
        """Give no signs of life in a block in which collectives find out who is lost."""
        return self._client.pause_heartbeat()

    def close(self) -> None:
        """Give no more signs of life."""
        self._is_checking_peers = False
        self._client.close()

    def _publish(self, key: str, value: Any) -> None:
        self._call_store(lambda store: store.set(f"said/{key}", json.dumps(value)))

    def _get_peer_ranks(self) -> range:
        return range(1, self.launch.world_size)

    def _wait_for_keys(self, keys: Mapping[int, str]) -> None:
        """Wait until each rank has said its key, as long as all of these live."""
        while keys := {rank: key for rank, key in keys.items() if not self._has_key(f"said/{key}")}:
            self._check_ranks(keys)
            time.sleep(
                _POLL_SECONDS if all(self._last_heartbeats[rank][0] > 0 for rank in keys) else 0.05
            )

    def _check_ranks(self, ranks: Iterable[int]) -> None:
        """Raise where a process has failed, was asked to stop, or one of these ranks is lost."""
        if self._has_key(self._outcome_key):
            self._raise_if_failed(self._call_store(lambda store: store.get(self._outcome_key)))
        self.health_check()
        if signum := signals.get_pending_signal():  # where it does not raise by itself
            # unless all go on already; they agree on it then, a step later
            self._raise_if_failed(
                self._decide_outcome(self._encode_failure(signum, 1, "asked to stop"))
            )
        for rank in ranks:
            beats = self._count_heartbeats(rank)
            before, seen = self._last_heartbeats.get(rank, (-1, 0.0))
            if beats != before:
                self._last_heartbeats[rank] = beats, time.monotonic()
            elif time.monotonic() - seen > self.timeout.total_seconds():
                raise lost.explain_missing_heartbeat(
                    rank, self.launch, self.timeout, has_started=beats > 0
                )
        self._last_check_time = time.monotonic()

    def _count_heartbeats(self, rank: int) -> int:
        return self._call_store(lambda store: store.add(f"beats/{rank}", 0))

    def _has_key(self, key: str) -> bool:
        return self._call_store(lambda store: store.check([key]))

    def _decide_outcome(self, proposal: str) -> bytes:
        return self._call_store(self._build_outcome_request(proposal))

    def _build_outcome_request(self, proposal: str) -> Callable[[Store], bytes]:
        """Return the question of how it ends, with what is the answer if nobody has said it."""
        return lambda store: store.compare_set(self._outcome_key, "", proposal)

    def _raise_if_failed(self, outcome: bytes) -> None:
        if outcome.decode() == _PROCEED:
            return
        told = json.loads(outcome)
        if told["signum"]:
            raise StopRequest(told["signum"])
        raise PeerFailedError(told["rank"], told["message"], exit_code=told["code"])

    def _call_store(self, request: Callable[[Store], T]) -> T:
        try:
            return self._client.call(request)
        except (RuntimeError, TimeoutError) as error:
            raise lost.explain_missing_heartbeat(
                0, self.launch, self.timeout, has_started=True
            ) from error


@contextmanager
def join_rendezvous(launch: LaunchInfo, *, timeout: timedelta) -> Iterator[Rendezvous]:
    """Meet the other processes of a launch, and tell them of an error in the block.

    Raises:
        TrainingError: Rank 0 cannot be reached.
    """
    met = Rendezvous(launch, lambda: open_store(launch, timeout), timeout=timeout)
    with propagate_failures(met):
        yield met


@contextmanager
def propagate_failures(rendezvous: Rendezvous) -> Iterator[None]:
    """Tell the others of an error in the block."""
    try:
        yield
    except PeerLostError:
        raise  # the others find out by themselves, and one of them may never answer
    except BaseException as error:
        rendezvous.report_failure(error)
        raise
    finally:
        rendezvous.close()


def sync_stop_request() -> None:
    """Wait for all ranks, and raise on all of them if one was asked to stop.

    Raises:
        StopRequest: The most urgent signal of all ranks.
    """
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    noted = torch.tensor([signals.get_pending_signal()], device=device)
    dist.all_reduce(noted, dist.ReduceOp.MAX)
    if int(noted):
        raise StopRequest(int(noted))
