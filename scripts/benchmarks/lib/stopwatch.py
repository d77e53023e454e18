"""Reporters that time the epochs and batches of finetune, and alternate with other loops."""

import gc
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.types import Reporter


@dataclass
class Epoch:
    """Times of one epoch, in seconds.

    Attributes:
        between: Time since the previous epoch, spent on its checkpoints.
        started: Time before the first batch is loaded.
        ticks: Time after each batch, of training and then of validation.
        ended: Time when the metrics are computed.
    """

    between: float
    started: float
    ticks: list[float] = field(default_factory=list)
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """Duration of training and validation."""
        return self.ended - self.started

    @property
    def whole_seconds(self) -> float:
        """Duration of training, validation and the checkpoints of the previous epoch."""
        return self.between + self.seconds


class Stopwatch(Reporter):
    """Records the end of each epoch and batch."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self._is_running = False

    def start(self, task: str, total: int) -> None:
        """Start an epoch; ignore other tasks."""
        self._is_running = task.startswith("epoch ")
        if self._is_running:
            between = self.run_before_epoch()
            self.epochs.append(Epoch(between, time.perf_counter()))

    def run_before_epoch(self) -> float:
        """Return the seconds to count since the previous epoch; 0 for a plain loop."""
        return 0.0

    def advance(self, steps: int = 1) -> None:
        """Record the end of a batch."""
        if self._is_running:
            self.epochs[-1].ticks.append(time.perf_counter())

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        """Record the end of the epoch."""
        self._is_running = False
        self.epochs[-1].ended = time.perf_counter()

    @property
    def warm(self) -> list[Epoch]:
        """All epochs but the first."""
        return self.epochs[1:]


class EpochTurns(Stopwatch):
    """Runs an epoch of other loops before each epoch of finetune, under the same machine load.

    Args:
        others: Loops that run one batch per ``next`` and yield True at the end of an epoch.
    """

    def __init__(self, others: Mapping[str, Iterator[bool]]) -> None:
        super().__init__()
        self._others = others

    def run_before_epoch(self) -> float:
        """Run an epoch of each other loop and return the seconds of the last checkpoints."""
        seconds = time.perf_counter() - self.epochs[-1].ended if self.epochs else 0.0
        loops = list(self._others.values())
        for loop in loops if len(self.epochs) % 2 else reversed(loops):
            gc.collect()
            while not next(loop):
                pass
        gc.collect()
        return seconds
