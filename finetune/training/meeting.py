"""Where the processes of a run meet before they train, and how none waits for one that is gone.

Rank 0 prepares the run, each machine decodes its images: that takes from seconds to hours, and no
fixed timeout is right. Each process gives a sign of life meanwhile; one that has given none for
the timeout is taken for lost, and one that fails says so to all others.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from finetune.errors import FinetuneError, TrainingError
from finetune.signals import StopRequest
from finetune.training.launch import Launch

_BEAT_SECONDS = 2.0
_LOOK_SECONDS = 0.5


class Meeting:
    """What the processes of a run tell each other, over a store that rank 0 holds.

    Args:
        launch: This process.
        store: Reached by all.
        timeout: How long a process may give no sign of life.
        watch: Called while waiting; may raise, as when a process that we started has ended.
    """

    def __init__(
        self,
        launch: Launch,
        store: Store,
        *,
        timeout: timedelta,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.launch = launch
        self.store = store
        self.timeout = timeout
        self.watch = watch
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def tell(self, key: str, value: Any) -> None:
        """Say something to all others, once."""
        self.store.set(f"said/{key}", json.dumps(value))

    def hear(self, key: str, *, rank: int) -> Any:
        """Return what a rank tells, however long that takes, as long as it lives.

        Raises:
            TrainingError: It is lost, or a process failed.
            StopRequest: A process was asked to stop.
        """
        beats, seen = -1, time.monotonic()
        while not self._is_there(f"said/{key}"):
            self._raise_failure()
            self.watch()
            if (now := self._beats(rank)) != beats:
                beats, seen = now, time.monotonic()
            elif time.monotonic() - seen > self.timeout.total_seconds():
                raise TrainingError(self._lost(rank, heard=beats > 0))
            time.sleep(_LOOK_SECONDS if beats > 0 else 0.05)
        return json.loads(self._asked(lambda: self.store.get(f"said/{key}")))

    def everyone(self, key: str) -> None:
        """Wait until every process has come here.

        Raises:
            TrainingError: One is lost, or failed.
            StopRequest: One was asked to stop.
        """
        self.tell(f"{key}/{self.launch.rank}", None)
        if self.launch.rank == 0:
            for rank in range(1, self.launch.world_size):
                self.hear(f"{key}/{rank}", rank=rank)
            self.tell(key, None)
        else:
            self.hear(key, rank=0)

    def fail(self, error: BaseException) -> None:
        """Tell those who still wait that this process ends."""
        if self._done.is_set():
            return
        signum = error.signum if isinstance(error, StopRequest) else 0
        code = error.exit_code if isinstance(error, FinetuneError) else 1
        told = {"rank": self.launch.rank, "signum": int(signum), "code": code}
        with suppress(RuntimeError):
            self.store.set("failed", json.dumps(told))
            if self.launch.rank == 0:  # the store goes with this process
                time.sleep(2 * _LOOK_SECONDS)

    @contextmanager
    def group(self, *, backend: str) -> Iterator[None]:
        """Open the process group once every process has come, and close it in good order.

        From here on a process that is lost is found by the collectives.

        Args:
            backend: "gloo" or "nccl".
        """
        self.everyone("ready")
        self.close()
        dist.init_process_group(
            backend,
            store=PrefixStore("group", self.store),
            rank=self.launch.rank,
            world_size=self.launch.world_size,
            timeout=self.timeout,
        )
        try:
            yield
            dist.barrier()
        except BaseException as error:
            # all have stopped together; otherwise NCCL could wait here for those that are gone
            if backend == "gloo" or isinstance(error, StopRequest):
                dist.destroy_process_group()
            raise
        # gloo aborts the process when the group is left to the interpreter's exit
        dist.destroy_process_group()

    def close(self) -> None:
        """Give no more signs of life."""
        self._done.set()
        self._beating.join()

    def _beat(self) -> None:
        with suppress(RuntimeError):  # rank 0 is gone; who waits for it finds out
            while not self._done.wait(0 if self._beats(self.launch.rank) < 1 else _BEAT_SECONDS):
                self.store.add(f"beats/{self.launch.rank}", 1)

    def _beats(self, rank: int) -> int:
        return int(self._asked(lambda: self.store.add(f"beats/{rank}", 0)))

    def _is_there(self, key: str) -> bool:
        return bool(self._asked(lambda: self.store.check([key])))

    def _raise_failure(self) -> None:
        if not self._is_there("failed"):
            return
        told = json.loads(self._asked(lambda: self.store.get("failed")))
        if told["signum"]:
            raise StopRequest(told["signum"])
        raise PeerError(told["rank"], exit_code=told["code"])

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except RuntimeError as error:  # torch's own kinds of it: the connection is gone
            raise TrainingError(self._lost(0, heard=True)) from error

    def _lost(self, rank: int, *, heard: bool) -> str:
        seconds = self.timeout.total_seconds()
        if heard:
            return (
                f"Rank {rank} ended, or gives no sign of life for {seconds:.0f} s. Its own message "
                f"says why; none means that it was killed, or the network cut."
            )
        return (
            f"Rank {rank} of {self.launch.world_size} did not start within {seconds:.0f} s. Start "
            f"all processes together; a slow machine needs more trainer.collective_timeout_seconds."
        )


class PeerError(TrainingError):
    """Another process failed, and has said why.

    Args:
        from_rank: Which.
        exit_code: What it exits with, and this one too.
    """

    def __init__(self, from_rank: int, *, exit_code: int) -> None:
        super().__init__(f"Rank {from_rank} failed; its own message says why.")
        self.from_rank = from_rank
        self.exit_code = exit_code  # type: ignore[misc]


@contextmanager
def meeting(launch: Launch, *, timeout: timedelta) -> Iterator[Meeting]:
    """Meet the other processes of a launch, and tell them of an error in the block.

    Raises:
        TrainingError: Rank 0 cannot be reached.
    """
    met = Meeting(launch, _store(launch, timeout), timeout=timeout)
    with telling(met):
        yield met


@contextmanager
def telling(met: Meeting) -> Iterator[None]:
    """Tell the others of an error in the block."""
    try:
        yield
    except BaseException as error:
        met.fail(error)
        raise
    finally:
        met.close()


def _store(launch: Launch, timeout: timedelta) -> Store:
    try:
        if launch.by == "torchrun":
            # its agent may hold the store, and keeps those of two attempts apart
            store: Store = next(iter(rendezvous("env://", timeout=timeout)))[0]
            return store
        return TCPStore(
            launch.address,
            launch.port,
            launch.world_size,
            is_master=launch.rank == 0,
            timeout=timeout,
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        what = "listen at" if launch.rank == 0 else "reach rank 0 at"
        reason = str(error).partition("\n")[0][:200]
        raise TrainingError(
            f"Cannot {what} {launch.address}:{launch.port}: {reason}. Check that the name resolves "
            f"on every machine and that the port is free and open (MASTER_ADDR, MASTER_PORT)."
        ) from error
