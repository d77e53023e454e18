"""Reporters that note when finetune's epochs and batches end, and let other loops take turns."""

import gc
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.types import Reporter


@dataclass
class Epoch:
    """When things happened in an epoch, in seconds.

    Attributes:
        between: What was done since the epoch before: its checkpoints.
        begun: Before the first batch is asked for.
        ticks: After each batch, of the training and then of the validation.
        ended: When its numbers are known.
    """

    between: float
    begun: float
    ticks: list[float] = field(default_factory=list)
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """Training and validation."""
        return self.ended - self.begun

    @property
    def whole_seconds(self) -> float:
        """Training, validation, and the checkpoints of the epoch before."""
        return self.between + self.seconds


class Stopwatch(Reporter):
    """Notes when each epoch and each of its batches ends."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self._running = False

    def start(self, task: str, total: int) -> None:
        """Begin an epoch, and only that."""
        self._running = task.startswith("epoch ")
        if self._running:
            between = self.before_epoch()
            self.epochs.append(Epoch(between, time.perf_counter()))

    def before_epoch(self) -> float:
        """Return the seconds since the epoch before that count; between plain epochs, none do."""
        return 0.0

    def advance(self, steps: int = 1) -> None:
        """Note the end of a batch."""
        if self._running:
            self.epochs[-1].ticks.append(time.perf_counter())

    def epoch(self, row: Any) -> None:
        """End the epoch."""
        self._running = False
        self.epochs[-1].ended = time.perf_counter()

    @property
    def warm(self) -> list[Epoch]:
        """All epochs but the first."""
        return self.epochs[1:]


class EpochTurns(Stopwatch):
    """Lets other loops do an epoch before each of finetune's, so that they meet the same moments.

    Args:
        others: Loops that do a batch each time they are asked, and say when an epoch is done.
    """

    def __init__(self, others: Mapping[str, Iterator[bool]]) -> None:
        super().__init__()
        self._others = others

    def before_epoch(self) -> float:
        """Return the seconds of the last checkpoints, after an epoch of each other loop."""
        seconds = time.perf_counter() - self.epochs[-1].ended if self.epochs else 0.0
        loops = list(self._others.values())
        for loop in loops if len(self.epochs) % 2 else reversed(loops):
            gc.collect()
            while not next(loop):
                pass
        gc.collect()
        return seconds
