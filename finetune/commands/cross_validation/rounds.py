"""Rounds of a cross-validation: each of its runs has a rendezvous of the same processes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from torch.distributed.distributed_c10d import PrefixStore

from finetune.distributed.rendezvous import Rendezvous
from finetune.types import Reporter


class Rounds:
    """Rendezvous of a cross-validation's runs, one after the other.

    A context manager. The next round opens as soon as one ends: whoever waits in it receives
    heartbeats, and an error, of a process that still works between two runs.

    Args:
        first: Closed rendezvous, whose store is used on; None for a single process.
        names: Names of the runs in their order, the same on all ranks, each of them once.
    """

    def __init__(self, first: Rendezvous | None, names: Sequence[str]) -> None:
        self._first = first
        self._names = iter(names)
        self._stack = ExitStack()
        self._rendezvous: Rendezvous | None = None

    def __enter__(self) -> Self:
        self._open_next()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(error_type, error, traceback)

    @contextmanager
    def enter_next(self, reporter: Reporter) -> Iterator[Rendezvous | None]:
        """Yield the rendezvous of the next run; None for a single process.

        Args:
            reporter: Receiver of progress, which checks the other processes.
        """
        rendezvous = self._rendezvous
        if rendezvous is None:
            yield None
            return
        with rendezvous.check_peers_on_advance(reporter):
            yield rendezvous
        self._stack.close()
        self._open_next()

    def _open_next(self) -> None:
        first, name = self._first, next(self._names, None)
        self._rendezvous = None
        if first is None or name is None:
            return
        self._rendezvous = self._stack.enter_context(
            Rendezvous(
                first.launch,
                timeout=first.timeout,
                connect=lambda: PrefixStore(f"run-{name}", first.store),
                health_check=first.health_check,
                poll_seconds=first.poll_seconds,
                heartbeat_seconds=first.heartbeat_seconds,
            )
        )
