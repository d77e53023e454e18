"""A line to the store by which processes find each other, that never keeps who asks waiting."""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.distributed_c10d import PrefixStore

from finetune.distributed.launch import LaunchInfo

T = TypeVar("T")

HEARTBEAT_SECONDS = 2.0
"""From one sign of life to the next."""


class StoreClient:
    """Asks the store on a thread of its own, and gives a sign of life between two questions.

    A question to a machine that is frozen or cut off is never answered; whoever asks it here still
    hears signals, and gives up after the timeout.

    Args:
        connect: Returns the store.
        timeout: When to give up on an answer.
        beat: The sign of life.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        *,
        timeout: timedelta,
        send_heartbeat: Callable[[Store], Any],
    ) -> None:
        self.timeout = timeout
        self._requests: queue.SimpleQueue[tuple[Callable[[Store], Any], list[Any]] | None]
        self._requests = queue.SimpleQueue()
        self._heartbeat_enabled = threading.Event()
        self._heartbeat_enabled.set()
        arguments = (connect, send_heartbeat, self._requests, self._heartbeat_enabled)
        threading.Thread(target=_serve_requests, args=arguments, daemon=True).start()

    def call(self, request: Callable[[Store], T], *, timeout_seconds: float | None = None) -> T:
        """Return the store's answer.

        Args:
            request: Is asked of it.
            timeout_seconds: When to give up; None is the timeout.

        Raises:
            RuntimeError: Torch's own kinds of it: the store is gone.
            TimeoutError: It does not answer.
        """
        answer: list[Any] = []
        self._requests.put((request, answer))
        end = time.monotonic() + (timeout_seconds or self.timeout.total_seconds() + 1)
        pause = 0.001
        while not answer:
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        if isinstance(answer[0], Exception):
            raise answer[0]
        found: T = answer[0]
        return found

    @contextmanager
    def pause_heartbeat(self) -> Iterator[None]:
        """Give no sign of life in the block, nor after an error.

        One that is never answered would keep everybody else here from the store.
        """
        self._heartbeat_enabled.clear()
        yield
        self._heartbeat_enabled.set()

    def close(self) -> None:
        """Ask no more."""
        self._requests.put(None)


def _serve_requests(
    connect: Callable[[], Store],
    send_heartbeat: Callable[[Store], Any],
    requests: "queue.SimpleQueue[tuple[Callable[[Store], Any], list[Any]] | None]",
    heartbeat_enabled: threading.Event,
) -> None:
    """Answer the questions until there are no more."""
    store: Store | None = None
    failure: Exception | None = None
    try:
        store = connect()
        send_heartbeat(store)
    except Exception as error:
        failure = error
    last = time.monotonic()
    while True:
        if (
            time.monotonic() - last > HEARTBEAT_SECONDS
            and store is not None
            and heartbeat_enabled.is_set()
        ):
            with suppress(RuntimeError):  # who asks something finds out
                send_heartbeat(store)
            last = time.monotonic()
        try:
            asked = requests.get(timeout=HEARTBEAT_SECONDS)
        except queue.Empty:
            continue
        if asked is None:
            return
        question, answer = asked
        if failure is not None or store is None:
            answer.append(failure)
            continue
        try:
            answer.append(question(store))
        except Exception as error:
            answer.append(error)


def open_store(launch: LaunchInfo, timeout: timedelta) -> Store:
    """Return the store of a launch, which rank 0 holds or torchrun's agent.

    Raises:
        RuntimeError: Torch's own kinds of it: it cannot be reached.
        TimeoutError: Nobody listens; or the agent does, and rank 0 has not come.
    """
    hosted = (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and launch.launcher == "torchrun"
    )
    if launch.rank > 0 or hosted:
        _wait_for_listener(launch.master_addr, launch.master_port, timeout)
    store = TCPStore(
        launch.master_addr,
        launch.master_port,
        launch.world_size,
        is_master=launch.rank == 0 and not hosted,
        timeout=timeout,
        wait_for_workers=False,
    )
    return _open_attempt_store(launch, store, timeout) if hosted else store


def _wait_for_listener(address: str, port: int, timeout: timedelta) -> None:
    """Wait until somebody listens; torch's own client would print pages of C++ if nobody does.

    Raises:
        TimeoutError: Nobody does.
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
    """Return a part of a store that outlives the processes, where nothing is left of earlier ones.

    torchrun's agent keeps one store for all attempts, and numbers these on each machine in another
    way. Rank 0 opens a part of its own; the others know it by its signs of life.
    """
    if launch.rank == 0:
        name = uuid4().hex
        store.set("finetune", name)
        return PrefixStore(name, store)
    end = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < end:
        part = PrefixStore(store.get("finetune").decode(), store)
        beats = part.add("beats/0", 0)
        time.sleep(1.5 * HEARTBEAT_SECONDS)
        if part.add("beats/0", 0) > beats:
            return part
    raise TimeoutError("rank 0 has not come")


def explain_connection_error(launch: LaunchInfo, error: Exception) -> str:
    """Return what to do where ``open_store`` fails."""
    what = "listen at" if launch.rank == 0 else "reach rank 0 at"
    reason = str(error).partition("\n")[0][:200] or "no answer"
    return (
        f"Cannot {what} {launch.master_addr}:{launch.master_port}: {reason}. Check that the name resolves on "
        f"every machine and that the port is free and open (MASTER_ADDR, MASTER_PORT)."
    )
