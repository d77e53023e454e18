"""Rounds of a cross-validation: each of its runs has a rendezvous of the same processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.distributed_c10d import PrefixStore

from finetune.distributed.rendezvous import Rendezvous
from finetune.types import Reporter


@contextmanager
def open_round(
    first: Rendezvous | None, name: str, reporter: Reporter
) -> Iterator[Rendezvous | None]:
    """Yield a rendezvous of the same processes for one run; None for a single process.

    Args:
        first: Closed rendezvous, whose store is used on.
        name: Name of the run, the same on all ranks and another one for each run.
        reporter: Receiver of progress, which checks the other processes.
    """
    if first is None:
        yield None
        return
    store = first.store
    with (
        Rendezvous(
            first.launch,
            timeout=first.timeout,
            connect=lambda: PrefixStore(f"run-{name}", store),
        ) as rendezvous,
        rendezvous.check_peers_on_advance(reporter),
    ):
        yield rendezvous
