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
from finetune.distributed.launch import Launch
from finetune.distributed.peer_errors import LostProcessError, PeerError
from finetune.distributed.signals import StopRequest
from finetune.distributed.store_client import Line, explain_unreached, open_store
from finetune.errors import FinetuneError, TrainingError

T = TypeVar("T")

_GO = "all go on"

_LOOK_SECONDS = 0.5
_TELL_SECONDS = 5.0
_LEAVE_SECONDS = 30.0


class Meeting:
    """What the processes of a run tell each other, over a store that rank 0 holds.

    Args:
        launch: This process.
        connect: Returns the store, reached by all.
        timeout: How long a process may give no sign of life.
        watch: Called while waiting; may raise, as when a process that we started has ended.

    Raises:
        TrainingError: The store cannot be reached.
    """

    def __init__(
        self,
        launch: Launch,
        connect: Callable[[], Store],
        *,
        timeout: timedelta,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.launch = launch
        self.timeout = timeout
        self.watch = watch
        self._looks = True
        self._verdict = "verdict"  # whether all go on, or who ended it; the first that says so wins
        self._seen: dict[int, tuple[int, float]] = {}  # signs of life of a rank, and when last
        self._last_look = time.monotonic()
        beat = f"beats/{launch.rank}"
        self._line = Line(connect, timeout=timeout, beat=lambda store: store.add(beat, 1))
        try:
            self._store: Store = self._line.ask(lambda store: store)
        except (RuntimeError, ValueError, TimeoutError) as error:
            self._line.close()
            raise TrainingError(explain_unreached(launch, error)) from error

    def arrived(self) -> None:
        """Wait until each of the others has given a sign of life, on rank 0.

        Raises:
            TrainingError: One did not start in time, or failed.
            StopRequest: One was asked to stop.
        """
        while not all(self._beats(rank) for rank in self._others()):
            self._look(self._others())
            time.sleep(0.05)

    def hand_out(self, key: str, value: Any) -> None:
        """Tell all others, on rank 0, and wait until each has heard it, so that it may leave."""
        self._tell(key, value)
        self._wait({rank: f"{key}/heard/{rank}" for rank in self._others()})

    def receive(self, key: str) -> Any:
        """Return what rank 0 hands out, however long that takes, as long as it lives.

        Raises:
            TrainingError: It is lost, or a process failed.
            StopRequest: A process was asked to stop.
        """
        self._wait({0: key})
        value = json.loads(self._asked(lambda store: store.get(f"said/{key}")))
        self._tell(f"{key}/heard/{self.launch.rank}", None)
        return value

    def everyone(self, key: str) -> None:
        """Wait until every process has come here; then all go on, or none does.

        Raises:
            TrainingError: One is lost, or failed.
            StopRequest: One was asked to stop.
        """
        self._tell(f"{key}/{self.launch.rank}", None)
        if self.launch.rank == 0:
            self._wait({rank: f"{key}/{rank}" for rank in self._others()})
            self._raise_failure(self._settle(_GO))  # one may have left, having come
            self._tell(key, None)
        else:
            self._wait({0: key})

    def leave(self) -> None:
        """Let the others go, on rank 0; on these, wait until that happens.

        Raises:
            TrainingError: Rank 0 is lost, or failed.
            StopRequest: It was asked to stop.
        """
        if self.launch.rank > 0:
            self.receive("end")
            return
        self._tell("end", None)
        end = time.monotonic() + _LEAVE_SECONDS
        while not all(self._has(f"said/end/heard/{rank}") for rank in self._others()):
            if time.monotonic() > end:
                return  # whoever is lost by now has nothing left to do
            time.sleep(_LOOK_SECONDS)

    def look(self) -> None:
        """Look after the others in the middle of one's own work, as often as one likes.

        Raises:
            TrainingError: One is lost, or failed.
            StopRequest: One was asked to stop.
        """
        if self._looks:
            self.look_at_waiting()

    def look_at_waiting(self) -> None:
        """Look after others that wait to be handed something, in a process group, too.

        Raises:
            TrainingError: One is lost, or failed.
            StopRequest: One was asked to stop.
        """
        if time.monotonic() - self._last_look > _LOOK_SECONDS:
            self._look(self._others() if self.launch.rank == 0 else [0])

    def fail(self, error: BaseException) -> None:
        """Tell those who still wait that this process ends, and why."""
        signum = error.signum if isinstance(error, StopRequest) else 0
        code = error.exit_code if isinstance(error, FinetuneError) else 1
        if isinstance(error, FinetuneError):
            error.is_told = True
        with suppress(RuntimeError, TimeoutError):
            told = self._failure(signum, code, error)
            self._line.ask(self._settling(told), seconds=_TELL_SECONDS)
            if self.launch.rank == 0:  # the store goes with this process
                time.sleep(2 * _LOOK_SECONDS)

    def _failure(self, signum: int, code: int, error: object) -> str:
        message = str(error).partition("\n")[0]
        told = {"rank": self.launch.rank, "signum": signum, "code": code, "message": message}
        return json.dumps(told)

    @contextmanager
    def group(self, *, backend: str) -> Iterator[None]:
        """Open the process group once every process has come, and close it in good order.

        From here on a process that is lost is found by the collectives, and signals are noted: all
        ranks act on them together, at the border of a batch or at the end.

        Args:
            backend: "gloo" or "nccl".
        """
        with signals.deferred():
            self.everyone("ready")
            self._looks, self._verdict = False, "verdict of the end"
            with lost.lost_process_explained(), self._opened(backend):
                yield
                stop_together()

    @contextmanager
    def _opened(self, backend: str) -> Iterator[None]:
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

    def silence(self) -> AbstractContextManager[None]:
        """Give no signs of life in a block in which collectives find out who is lost."""
        return self._line.silence()

    def close(self) -> None:
        """Give no more signs of life."""
        self._looks = False
        self._line.close()

    def _tell(self, key: str, value: Any) -> None:
        self._asked(lambda store: store.set(f"said/{key}", json.dumps(value)))

    def _others(self) -> range:
        return range(1, self.launch.world_size)

    def _wait(self, keys: Mapping[int, str]) -> None:
        """Wait until each rank has said its key, as long as all of these live."""
        while keys := {rank: key for rank, key in keys.items() if not self._has(f"said/{key}")}:
            self._look(keys)
            time.sleep(_LOOK_SECONDS if all(self._seen[rank][0] > 0 for rank in keys) else 0.05)

    def _look(self, ranks: Iterable[int]) -> None:
        """Raise where a process has failed, was asked to stop, or one of these ranks is lost."""
        if self._has(self._verdict):
            self._raise_failure(self._asked(lambda store: store.get(self._verdict)))
        self.watch()
        if signum := signals.noted():  # where it does not raise by itself
            # unless all go on already; they agree on it then, a step later
            self._raise_failure(self._settle(self._failure(signum, 1, "asked to stop")))
        for rank in ranks:
            beats = self._beats(rank)
            before, seen = self._seen.get(rank, (-1, 0.0))
            if beats != before:
                self._seen[rank] = beats, time.monotonic()
            elif time.monotonic() - seen > self.timeout.total_seconds():
                raise lost.explain_silence(rank, self.launch, self.timeout, heard=beats > 0)
        self._last_look = time.monotonic()

    def _beats(self, rank: int) -> int:
        return self._asked(lambda store: store.add(f"beats/{rank}", 0))

    def _has(self, key: str) -> bool:
        return self._asked(lambda store: store.check([key]))

    def _settle(self, wish: str) -> bytes:
        return self._asked(self._settling(wish))

    def _settling(self, wish: str) -> Callable[[Store], bytes]:
        """Return the question of how it ends, with what is the answer if nobody has said it."""
        return lambda store: store.compare_set(self._verdict, "", wish)

    def _raise_failure(self, verdict: bytes) -> None:
        if verdict.decode() == _GO:
            return
        told = json.loads(verdict)
        if told["signum"]:
            raise StopRequest(told["signum"])
        raise PeerError(told["rank"], told["message"], exit_code=told["code"])

    def _asked(self, question: Callable[[Store], T]) -> T:
        try:
            return self._line.ask(question)
        except (RuntimeError, TimeoutError) as error:
            raise lost.explain_silence(0, self.launch, self.timeout, heard=True) from error


@contextmanager
def meeting(launch: Launch, *, timeout: timedelta) -> Iterator[Meeting]:
    """Meet the other processes of a launch, and tell them of an error in the block.

    Raises:
        TrainingError: Rank 0 cannot be reached.
    """
    met = Meeting(launch, lambda: open_store(launch, timeout), timeout=timeout)
    with telling(met):
        yield met


@contextmanager
def telling(met: Meeting) -> Iterator[None]:
    """Tell the others of an error in the block."""
    try:
        yield
    except LostProcessError:
        raise  # the others find out by themselves, and one of them may never answer
    except BaseException as error:
        met.fail(error)
        raise
    finally:
        met.close()


def stop_together() -> None:
    """Wait for all ranks, and raise on all of them if one was asked to stop.

    Raises:
        StopRequest: The most urgent signal of all ranks.
    """
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    noted = torch.tensor([signals.noted()], device=device)
    dist.all_reduce(noted, dist.ReduceOp.MAX)
    if int(noted):
        raise StopRequest(int(noted))
