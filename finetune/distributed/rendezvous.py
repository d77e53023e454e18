"""Rendezvous of a run's processes, with heartbeats and failure propagation.

It serves before the process group exists. Rank 0 prepares the run and each node decodes its images,
which takes from seconds to hours, so no fixed timeout is right. Meanwhile each process sends
heartbeats; one that has sent none for the timeout counts as lost, and one that fails publishes its
error to all others.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from torch._C._distributed_c10d import Store
from torch.distributed.distributed_c10d import PrefixStore

from finetune.distributed import signals
from finetune.distributed.collectives import init_process_group, sync_stop_request
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.peer_errors import (
    PeerFailedError,
    PeerLostError,
    explain_missing_heartbeat,
    translate_peer_errors,
)
from finetune.distributed.signals import StopRequest
from finetune.distributed.store_client import (
    HEARTBEAT_SECONDS,
    StoreClient,
    explain_connection_error,
    get_heartbeat_key,
    open_store,
)
from finetune.errors import FinetuneError, TrainingError
from finetune.types import Reporter

T = TypeVar("T")

_PROCEED = "proceed"
_REPORT_TIMEOUT_SECONDS = 5.0


class Rendezvous:
    """Messages, barriers and failures of a run's processes, over a store that rank 0 hosts.

    A context manager: an error in its block is published to the other processes.

    Args:
        launch: Rank of this process and size of the run.
        timeout: Time without heartbeats after which a process counts as lost.
        connect: Opens a store that all processes reach; None opens that of the launch.
        health_check: Called while waiting; may raise, for example if a started process has ended.
        poll_seconds: Interval between two checks while waiting.
        heartbeat_seconds: Interval between two heartbeats.

    Raises:
        TrainingError: The store cannot be reached.
    """

    def __init__(
        self,
        launch: LaunchInfo,
        *,
        timeout: timedelta,
        connect: Callable[[], Store] | None = None,
        health_check: Callable[[], None] = lambda: None,
        poll_seconds: float = 0.5,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.launch = launch
        self.timeout = timeout
        self.health_check = health_check
        self.poll_seconds = poll_seconds
        self.heartbeat_seconds = heartbeat_seconds
        self._is_checking_on_advance = True
        # the store connects rank 0 with each of the others
        self._peer_ranks = [0] if launch.rank > 0 else list(range(1, launch.world_size))
        # whether all ranks proceed, or which one ended the run; the first proposal wins
        self._outcome_key = "outcome"
        # number of heartbeats of a rank, and the time of the last change
        self._last_heartbeats: dict[int, tuple[int, float]] = {}
        self._last_check_time = time.monotonic()
        self._client = StoreClient(
            connect or (lambda: open_store(launch, timeout)),
            rank=launch.rank,
            timeout=timeout,
            heartbeat_seconds=heartbeat_seconds,
        )
        try:
            self.store: Store = self._client.call(lambda store: store)
        except (RuntimeError, ValueError, TimeoutError) as error:
            self._client.close()
            raise TrainingError(explain_connection_error(launch, error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # every rank detects a lost peer by itself, and the store may never respond
            if error is not None and not isinstance(error, PeerLostError):
                self._report_failure(error)
        finally:
            self.close()

    def close(self) -> None:
        """Stop the heartbeats and the checks of peers."""
        self._is_checking_on_advance = False
        self._client.close()

    def wait_for_peers(self) -> None:
        """Wait, on rank 0, until every other rank has sent a heartbeat.

        Raises:
            TrainingError: A rank did not start in time, or failed.
            StopRequest: A rank received a stop signal.
        """
        while not all(self._count_heartbeats(rank) for rank in self._peer_ranks):
            self._check_ranks(self._peer_ranks)
            time.sleep(0.05)

    def broadcast(self, key: str, value: Any) -> None:
        """Publish a JSON value, on rank 0, and wait until every other rank has received it.

        Raises:
            TrainingError: A rank is lost, or failed.
            StopRequest: A rank received a stop signal.
        """
        self._publish(key, value)
        self._wait_for_keys({rank: f"{key}/received/{rank}" for rank in self._peer_ranks})

    def receive(self, key: str) -> Any:
        """Wait for the value that rank 0 broadcasts and return it; no time limit while it lives.

        Raises:
            TrainingError: Rank 0 is lost, or a rank failed.
            StopRequest: A rank received a stop signal.
        """
        self._wait_for_keys({0: key})
        value = json.loads(self._call_store(lambda store: store.get(f"published/{key}")))
        self._publish(f"{key}/received/{self.launch.rank}", None)
        return value

    def barrier(self, key: str) -> None:
        """Wait until every rank has arrived; then all ranks proceed, or none does.

        Raises:
            TrainingError: A rank is lost, or failed.
            StopRequest: A rank received a stop signal.
        """
        self._publish(f"{key}/{self.launch.rank}", None)
        if self.launch.rank == 0:
            self._wait_for_keys({rank: f"{key}/{rank}" for rank in self._peer_ranks})
            # a rank may have failed after its arrival
            self._raise_unless_proceeding(self._propose_outcome(_PROCEED))
            self._publish(key, None)
        else:
            self._wait_for_keys({0: key})

    def depart(self, *, timeout_seconds: float = 30.0) -> None:
        """Release the other ranks, on rank 0; wait, on the others, until rank 0 does.

        Args:
            timeout_seconds: Time limit on rank 0; a rank lost by now has nothing left to do.

        Raises:
            TrainingError: Rank 0 is lost, or failed.
            StopRequest: Rank 0 received a stop signal.
        """
        if self.launch.rank > 0:
            self.receive("end")
            return
        self._publish("end", None)
        end = time.monotonic() + timeout_seconds
        keys = [f"published/end/received/{rank}" for rank in self._peer_ranks]
        while not all(map(self._has_key, keys)) and time.monotonic() <= end:
            time.sleep(self.poll_seconds)

    def check_peers(self) -> None:
        """Check the other ranks during own work; cheap enough for every image.

        With an open process group only while they wait in ``receive``: else collectives detect a
        lost rank, and all ranks act on stop signals together.

        Raises:
            TrainingError: A rank is lost, or failed.
            StopRequest: A rank received a stop signal.
        """
        if time.monotonic() - self._last_check_time > self.poll_seconds:
            self._check_ranks(self._peer_ranks)

    @contextmanager
    def check_peers_on_advance(self, reporter: Reporter) -> Iterator[None]:
        """Call ``check_peers`` at each progress step in the block, until the process group opens.

        Scanning and decoding take from seconds to hours, and report every image.
        """
        advance = reporter.advance

        def advance_and_check(steps: int = 1) -> None:
            advance(steps)
            if self._is_checking_on_advance:
                self.check_peers()

        reporter.advance = advance_and_check  # type: ignore[method-assign]
        try:
            yield
        finally:
            del reporter.advance  # restores the method of the class

    @contextmanager
    def open_process_group(self, *, backend: str) -> Iterator[None]:
        """Open the process group once every rank has arrived, and close it after the block.

        From here on collectives detect a lost rank, and stop signals are only recorded: all ranks
        act on them together, after a batch or at the end of the block.

        Args:
            backend: "gloo" or "nccl".
        """
        with signals.defer():
            self.barrier("ready")
            self._is_checking_on_advance, self._outcome_key = False, "final_outcome"
            store = PrefixStore("group", self.store)
            group = init_process_group(self.launch, store, backend=backend, timeout=self.timeout)
            with translate_peer_errors(), group:
                yield
                sync_stop_request()

    def pause_heartbeat(self) -> AbstractContextManager[None]:
        """Send no heartbeats in a block whose collectives detect lost ranks."""
        return self._client.pause_heartbeat()

    def _publish(self, key: str, value: Any) -> None:
        self._call_store(lambda store: store.set(f"published/{key}", json.dumps(value)))

    def _wait_for_keys(self, keys: Mapping[int, str]) -> None:
        """Wait until each rank has published its key, while all of these ranks live."""
        while keys := {n: key for n, key in keys.items() if not self._has_key(f"published/{key}")}:
            self._check_ranks(keys)
            have_started = all(self._last_heartbeats[rank][0] > 0 for rank in keys)
            time.sleep(self.poll_seconds if have_started else 0.05)

    def _check_ranks(self, ranks: Iterable[int]) -> None:
        """Raise if any process failed or received a stop signal, or one of these ranks is lost."""
        if self._has_key(self._outcome_key):
            outcome = self._call_store(lambda store: store.get(self._outcome_key))
            self._raise_unless_proceeding(outcome)
        self.health_check()
        if signum := signals.get_pending_signal():  # where signals are deferred
            # if all ranks proceed already, they agree on the stop after their first step
            failure = self._encode_failure("received a stop signal", signum=signum, exit_code=1)
            self._raise_unless_proceeding(self._propose_outcome(failure))
        for rank in ranks:
            num_heartbeats = self._count_heartbeats(rank)
            last_num, last_time = self._last_heartbeats.get(rank, (-1, 0.0))
            if num_heartbeats != last_num:
                self._last_heartbeats[rank] = num_heartbeats, time.monotonic()
            elif time.monotonic() - last_time > self.timeout.total_seconds():
                raise explain_missing_heartbeat(
                    rank, self.launch, self.timeout, has_started=num_heartbeats > 0
                )
        self._last_check_time = time.monotonic()

    def _count_heartbeats(self, rank: int) -> int:
        return self._call_store(lambda store: store.add(get_heartbeat_key(rank), 0))

    def _has_key(self, key: str) -> bool:
        return self._call_store(lambda store: store.check([key]))

    def _report_failure(self, error: BaseException) -> None:
        """Publish to the ranks that still wait that this process ends, and why."""
        if isinstance(error, FinetuneError):
            error.is_published = True
        failure = self._encode_failure(
            str(error).partition("\n")[0],
            signum=error.signum if isinstance(error, StopRequest) else 0,
            exit_code=error.exit_code if isinstance(error, FinetuneError) else 1,
        )
        with suppress(TrainingError):
            self._propose_outcome(failure, timeout_seconds=_REPORT_TIMEOUT_SECONDS)
            if self.launch.rank == 0:  # the store ends with this process
                time.sleep(2 * self.poll_seconds)

    def _encode_failure(self, message: str, *, signum: int, exit_code: int) -> str:
        failure = {"signum": signum, "exit_code": exit_code, "message": message}
        return json.dumps({"rank": self.launch.rank, **failure})

    def _propose_outcome(self, proposal: str, *, timeout_seconds: float | None = None) -> bytes:
        """Return the outcome of the run, which is the proposal unless there was an earlier one."""
        return self._call_store(
            lambda store: store.compare_set(self._outcome_key, "", proposal),
            timeout_seconds=timeout_seconds,
        )

    def _raise_unless_proceeding(self, outcome: bytes) -> None:
        if outcome.decode() == _PROCEED:
            return
        failure = json.loads(outcome)
        if failure["signum"]:
            raise StopRequest(failure["signum"])
        raise PeerFailedError(failure["rank"], failure["message"], exit_code=failure["exit_code"])

    def _call_store(
        self, request: Callable[[Store], T], *, timeout_seconds: float | None = None
    ) -> T:
        try:
            return self._client.call(request, timeout_seconds=timeout_seconds)
        except (RuntimeError, TimeoutError) as error:
            raise explain_missing_heartbeat(
                0, self.launch, self.timeout, has_started=True
            ) from error
