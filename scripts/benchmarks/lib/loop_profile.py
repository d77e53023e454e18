"""Profile of the functions in finetune's training steps, by cProfile."""

import cProfile
import pstats
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.benchmarks.lib.stopwatch import Stopwatch

COMPUTE = (
    "conv2d",
    "batch_norm",
    "run_backward",
    "_fused_adamw_",
)  # built-in functions listed separately
WORK = re.compile(
    r"/timm/|/torch/nn/(modules|functional)|/albumentations/|/albucore/|/numpy/"
    r"|/finetune/(data|models)/|/random\.py|" + "|".join(COMPUTE)
)


class StepWindow(Stopwatch):
    """Calls a function after the first training step of each epoch and one after the last."""

    def __init__(
        self, steps: int, on_begin: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        super().__init__()
        self._steps, self._on_begin, self._on_end = steps, on_begin, on_end

    @property
    def num_steps(self) -> int:
        """Number of profiled steps."""
        return len(self.warm) * (self._steps - 1)

    def advance(self, steps: int = 1) -> None:
        """Record the end of a batch."""
        super().advance(steps)
        done = len(self.epochs[-1].ticks) if self._is_running and self.warm else 0
        if done == self._steps:
            self._on_end()
        elif done == 1:
            self._on_begin()


@dataclass(frozen=True)
class Function:
    """Function of a profile, including the built-in functions that it calls.

    Attributes:
        name: File, line and name.
        calls: Number of calls.
        seconds: Own time plus that of the built-in functions called from it.
    """

    name: str
    calls: int
    seconds: float

    @property
    def is_work(self) -> bool:
        """Whether the function reads images or computes the network."""
        return WORK.search(self.name) is not None

    @property
    def short_name(self) -> str:
        """Name without the folders above its package."""
        above = r"^.*?/(site-packages/|python3\.\d+/|(?=finetune/\w+/\w+\.py))"
        return re.sub(above, "", self.name)


def profile(run: Callable[[Stopwatch], Any], *, steps: int) -> tuple[list[Function], int]:
    """Return the functions of a run's training steps by decreasing time, and the number of steps.

    The first epoch is excluded. The profiler slows down every call, small ones most.
    """
    profiler = cProfile.Profile()
    watch = StepWindow(steps, profiler.enable, profiler.disable)
    run(watch)
    entries: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    seconds: dict[Any, float] = defaultdict(float)
    for key, (_, _, own, _, callers) in entries.items():
        if key[0] != "~" or any(word in key[2] for word in COMPUTE):
            seconds[key] += own
            continue
        for caller, (_, _, own_there, _) in callers.items():
            seconds[caller] += own_there
    functions = [Function(_format_location(key), entries[key][1], seconds[key]) for key in seconds]
    functions.sort(key=lambda function: function.seconds, reverse=True)
    return functions, watch.num_steps


def _format_location(key: tuple[str, int, str]) -> str:
    file, line, name = key
    return name if file == "~" else f"{file}:{line} {name}"
