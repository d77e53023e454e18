"""TCPStore client that runs requests on a background thread.

Callers can time out and still receive signals.
"""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.distributed_c10d import PrefixStore

from finetune.distributed.launch import LaunchInfo

T = TypeVar("T")

HEARTBEAT_SECONDS = 2.0
"""Interval between two heartbeats."""

_ATTEMPT_KEY = "finetune/attempt"
"""Key of the present attempt's namespace in the store of torchrun's agent, which others use too."""


def get_heartbeat_key(rank: int) -> str:
    """Return the key of the counter that a rank increments at each heartbeat."""
    return f"heartbeats/{rank}"


class StoreClient:
    """Store client with a thread of its own, which also sends heartbeats between requests.

    A request to a node that is frozen or cut off never returns; a caller still receives signals,
    and gives up after the timeout.

    Args:
        connect: Opens the store; called on the background thread.
        rank: Rank whose heartbeats are sent.
        timeout: Time limit of a request.
        heartbeat_seconds: Interval between heartbeats.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        *,
        rank: int,
        timeout: timedelta,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.timeout = timeout
        self.heartbeat_seconds = heartbeat_seconds
        self._requests: queue.SimpleQueue[tuple[Callable[[Store], Any], Future[Any]] | None]
        self._requests = queue.SimpleQueue()
        self._is_sending = threading.Event()
        self._is_sending.set()
        arguments = (connect, get_heartbeat_key(rank))
        threading.Thread(target=self._serve, args=arguments, daemon=True).start()

    def call(self, request: Callable[[Store], T], *, timeout_seconds: float | None = None) -> T:
        """Run a request on the background thread and return its result.

        Args:
            request: Called with the store.
            timeout_seconds: Time limit; None takes the client's timeout and one second.

        Raises:
            RuntimeError: The store is gone; torch's own subclasses of it.
            TimeoutError: The store does not respond.
        """
        future: Future[T] = Future()
        self._requests.put((request, future))
        return future.result(timeout_seconds or self.timeout.total_seconds() + 1)

    @contextmanager
    def pause_heartbeat(self) -> Iterator[None]:
        """Send no heartbeats in the block, nor after an error in it.

        A heartbeat that is never answered would block all further requests of this process.
        """
        self._is_sending.clear()
        yield
        self._is_sending.set()

    def close(self) -> None:
        """End the background thread after the requests that are already queued."""
        self._requests.put(None)

    def _serve(self, connect: Callable[[], Store], heartbeat_key: str) -> None:
        """Connect, then run requests and send heartbeats until the client is closed."""
        try:
            store = connect()
            store.add(heartbeat_key, 1)
        except Exception as error:
            self._reject_all(error)
            return
        last_heartbeat = time.monotonic()
        while True:
            is_due = time.monotonic() - last_heartbeat > self.heartbeat_seconds
            if is_due and self._is_sending.is_set():
                with suppress(RuntimeError):  # the next request raises it
                    store.add(heartbeat_key, 1)
                last_heartbeat = time.monotonic()
            try:
                item = self._requests.get(timeout=self.heartbeat_seconds)
            except queue.Empty:
                continue
            if item is None:
                return
            request, future = item
            try:
                future.set_result(request(store))
            except Exception as error:
                future.set_exception(error)

    def _reject_all(self, error: Exception) -> None:
        """Fail all requests with the error of the connection."""
        while (item := self._requests.get()) is not None:
            item[1].set_exception(error)


def open_store(launch: LaunchInfo, timeout: timedelta) -> Store:
    """Open the store of a launch, which rank 0 or torchrun's agent hosts.

    Raises:
        RuntimeError: The store cannot be reached; torch's own subclasses of it.
        TimeoutError: No process listens, or the agent does and rank 0 has not arrived.
    """
    is_agent_store = (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and launch.launcher == "torchrun"
    )
    if launch.rank > 0 or is_agent_store:
        _wait_for_listener(launch.master_addr, launch.master_port, timeout)
    store = TCPStore(
        launch.master_addr,
        launch.master_port,
        launch.world_size,
        is_master=launch.rank == 0 and not is_agent_store,
        timeout=timeout,
        wait_for_workers=False,
    )
    return _open_attempt_store(launch, store, timeout) if is_agent_store else store


def _wait_for_listener(address: str, port: int, timeout: timedelta) -> None:
    """Wait until a process listens; torch's own client would print pages of C++ traces otherwise.

    Raises:
        TimeoutError: No process listens.
    """
    end = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(error.strerror or str(error)) from error
        time.sleep(0.2)


def _open_attempt_store(launch: LaunchInfo, store: Store, timeout: timedelta) -> Store:
    """Open the namespace of the present attempt, without keys of earlier attempts.

    The store of torchrun's agent outlives the processes and serves all attempts, which each node
    numbers differently. Rank 0 creates a new namespace; the other ranks recognise it by the
    heartbeats of rank 0.

    Raises:
        TimeoutError: Rank 0 has not arrived.
    """
    if launch.rank == 0:
        name = uuid4().hex
        store.set(_ATTEMPT_KEY, name)
        return PrefixStore(name, store)
    end = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < end:
        attempt_store = PrefixStore(store.get(_ATTEMPT_KEY).decode(), store)
        num_heartbeats = attempt_store.add(get_heartbeat_key(0), 0)
        time.sleep(1.5 * HEARTBEAT_SECONDS)
        if attempt_store.add(get_heartbeat_key(0), 0) > num_heartbeats:
            return attempt_store
    raise TimeoutError("rank 0 has not arrived")


def explain_connection_error(launch: LaunchInfo, error: Exception) -> str:
    """Return the message for an error of ``open_store``."""
    action = "listen at" if launch.rank == 0 else "reach rank 0 at"
    reason = str(error).partition("\n")[0][:200] or "no response"
    return (
        f"Cannot {action} {launch.master_addr}:{launch.master_port}: {reason}. Check that the "
        f"host name resolves on every node and that the port is free and open (MASTER_ADDR, "
        f"MASTER_PORT)."
    )
