"""Alternating steps of two loops, with timers around the parts of a step.

The speed of a shared machine varies from second to second by more than the overhead of a loop.
Therefore the plain loop runs one step after each step of finetune, under the same load, and the
differences within pairs are compared.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.plugins.precision import Precision
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data.dataloader import _BaseDataLoaderIter

import finetune.training.module
from finetune.models.classifier import ImageClassifier
from finetune.types import Reporter
from scripts.benchmarks.lib import plain_loop
from scripts.benchmarks.lib.training_setup import synchronize

Hook = tuple[str, Any, str]  # part of a step; owner and name of a function of this part
Parts = dict[str, float]  # seconds per part of a step

REST, WHOLE = "the rest", "the whole step"
HOOKS: tuple[Hook, ...] = (
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
PART_NAMES = (*dict.fromkeys(part for part, _, _ in HOOKS), WHOLE)


class PartTimers:
    """Sums the time of each part; calls of another part are attributed to that part."""

    def __init__(self) -> None:
        self._seconds: Parts = defaultdict(float)
        self._inner: list[float] = []  # time of other parts within the open calls
        self._since = 0.0

    def restart(self) -> None:
        """Start a step."""
        self._seconds.clear()
        self._since = time.perf_counter()

    def take(self) -> Parts:
        """Return the time of each part since the last step, and start the next."""
        whole = time.perf_counter() - self._since
        self._seconds.pop(REST, None)
        rest = whole - sum(self._seconds.values())
        parts = {**self._seconds, REST: rest, WHOLE: whole}
        self.restart()
        return parts

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that adds its time to a part."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                duration = time.perf_counter() - start
                self._seconds[part] += duration - self._inner.pop()
                if self._inner:
                    self._inner[-1] += duration

        return wrapper

    @contextmanager
    def install(self, hooks: Iterable[Hook] = HOOKS) -> Iterator[None]:
        """Wrap the functions with timers within the block."""
        before = [(owner, name, vars(owner).get(name)) for _, owner, name in hooks]
        for part, owner, name in hooks:
            setattr(owner, name, self.wrap(part, getattr(owner, name)))
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
        epoch: Epoch, from 1.
        batch: Batch of the epoch, from 0; validation follows training.
        fit: Times in finetune's loop.
        plain: Times in the plain loop.
    """

    epoch: int
    batch: int
    fit: Parts
    plain: Parts


class PairedReporter(Reporter):
    """Runs a step of the plain loop after each step of finetune.

    Args:
        plain: Loop that runs one step per ``next`` and yields True at the end of an epoch.
        timers: Timers of the parts.
        device: Device of both loops; each step is synchronised.
    """

    def __init__(self, plain: Iterator[bool], timers: PartTimers, device: str) -> None:
        self.pairs: list[Pair] = []
        self._plain, self._timers, self._device = plain, timers, device
        self._is_running = False
        self._epoch = self._batch = 0

    def start(self, task: str, total: int) -> None:
        """Start an epoch; ignore other tasks."""
        self._is_running = task.startswith("epoch ")
        if self._is_running:
            self._epoch, self._batch = self._epoch + 1, 0
            self._timers.restart()

    def advance(self, steps: int = 1) -> None:
        """Record the times of finetune's step, and run the same step of the plain loop."""
        if not self._is_running:
            return
        fit = self._take_times()
        if next(self._plain):  # the end of the previous epoch
            self._timers.restart()
            next(self._plain)
        self.pairs.append(Pair(self._epoch, self._batch, fit, self._take_times()))
        self._batch += 1

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        """End the epoch."""
        self._is_running = False

    def warm(self, first: int, last: int | None) -> list[Pair]:
        """Return the pairs of a range of batches, without the first epoch.

        Args:
            first: First batch, which is excluded: it contains the start of the epoch.
            last: End of the range; None is the end of the epoch.
        """
        end = float("inf") if last is None else last
        return [pair for pair in self.pairs if pair.epoch > 1 and first < pair.batch < end]

    def _take_times(self) -> Parts:
        synchronize(self._device)
        return self._timers.take()
