"""Two loops step by step in turns, with timers around the parts of a step.

The speed of a shared machine changes from second to second, by more than a loop costs. Here the
plain loop does one step after each of finetune's, so that both meet the same moments; what counts
is the difference within a pair.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import plain_loop
import torch
from pytorch_lightning.plugins.precision import Precision
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data.dataloader import _BaseDataLoaderIter
from trainings import synchronize

import finetune.training.module
from finetune.models.classifier import ImageClassifier
from finetune.types import Reporter

Place = tuple[str, Any, str]  # the part of a step, and the owner and name of a function of it
Parts = dict[str, float]  # seconds of a step

REST, WHOLE = "the rest", "the whole step"
PLACES: tuple[Place, ...] = (
    ("data", _BaseDataLoaderIter, "__next__"),
    ("forward", ImageClassifier, "forward"),
    ("forward", finetune.training.module, "normalise"),
    ("forward", plain_loop, "normalise"),
    ("forward", torch.nn.functional, "cross_entropy"),
    ("backward", torch.Tensor, "backward"),
    ("clip gradients", torch.nn.utils, "clip_grad_norm_"),
    ("optimizer", AdamW, "step"),
    ("zero_grad", Optimizer, "zero_grad"),
    ("schedule", LambdaLR, "step"),
    # Lightning lets the optimizer call the whole step as a closure
    (REST, Precision, "_wrap_closure"),
)
PART_NAMES = (*dict.fromkeys(part for part, _, _ in PLACES), WHOLE)


class PartTimers:
    """Adds up the time of each part; what a part calls of another is the other's."""

    def __init__(self) -> None:
        self._seconds: Parts = defaultdict(float)
        self._inner: list[float] = []  # of the open calls: what other parts took in them
        self._since = 0.0

    def restart(self) -> None:
        """Begin a step."""
        self._seconds.clear()
        self._since = time.perf_counter()

    def take(self) -> Parts:
        """Return what each part took since the last step, and begin the next."""
        whole = time.perf_counter() - self._since
        self._seconds.pop(REST, None)
        rest = whole - sum(self._seconds.values())
        parts = {**self._seconds, REST: rest, WHOLE: whole}
        self.restart()
        return parts

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added to a part."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                self._seconds[part] += took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took

        return wrapper

    @contextmanager
    def hooked(self, places: Iterable[Place] = PLACES) -> Iterator[None]:
        """Put timers around the functions, and take them away afterwards."""
        before = [(owner, name, vars(owner).get(name)) for _, owner, name in places]
        for part, owner, name in places:
            setattr(owner, name, self.timed(part, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, function in before:
                if function is None:
                    delattr(owner, name)  # it was inherited
                else:
                    setattr(owner, name, function)


@dataclass(frozen=True)
class Pair:
    """One batch in both loops.

    Attributes:
        epoch: Counted from 1.
        batch: Of the epoch, counted from 0; validation follows training.
        fit: What it took in finetune's loop.
        plain: What it took in the plain loop.
    """

    epoch: int
    batch: int
    fit: Parts
    plain: Parts


class PairedReporter(Reporter):
    """Lets the plain loop do a step after each of finetune's.

    Args:
        plain: Does one step each time, or says that an epoch is done.
        timers: Of the parts.
        device: Both loops' device; each step waits for it.
    """

    def __init__(self, plain: Iterator[bool], timers: PartTimers, device: str) -> None:
        self.pairs: list[Pair] = []
        self._plain, self._timers, self._device = plain, timers, device
        self._running = False
        self._epoch = self._batch = 0

    def start(self, task: str, total: int) -> None:
        """Begin an epoch, and only that."""
        self._running = task.startswith("epoch ")
        if self._running:
            self._epoch, self._batch = self._epoch + 1, 0
            self._timers.restart()

    def advance(self, steps: int = 1) -> None:
        """Note what finetune's step took, and do the same step in the plain loop."""
        if not self._running:
            return
        fit = self._taken()
        if next(self._plain):  # an epoch was done before
            self._timers.restart()
            next(self._plain)
        self.pairs.append(Pair(self._epoch, self._batch, fit, self._taken()))
        self._batch += 1

    def epoch(self, row: Any) -> None:
        """End the epoch."""
        self._running = False

    def warm(self, first: int, last: int | None) -> list[Pair]:
        """Return the pairs of some batches of all epochs but the first.

        Args:
            first: Of the batches; it is left out, for an epoch's beginning is in it.
            last: The batch before which they end; None is the epoch's end.
        """
        end = float("inf") if last is None else last
        return [pair for pair in self.pairs if pair.epoch > 1 and first < pair.batch < end]

    def _taken(self) -> Parts:
        synchronize(self._device)
        return self._timers.take()
