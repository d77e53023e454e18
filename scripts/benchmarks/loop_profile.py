"""The functions of finetune's training steps, as cProfile sees them."""

import cProfile
import pstats
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from watches import Stopwatch

ENGINE = ("conv2d", "batch_norm", "run_backward", "_fused_adamw_")  # rows of their own
WORK = re.compile(
    r"/timm/|/torch/nn/(modules|functional)|/albumentations/|/albucore/|/numpy/"
    r"|/finetune/(data|models)/|/random\.py|" + "|".join(ENGINE)
)


class StepWindow(Stopwatch):
    """Begins something after the first training step of each epoch, ends it after the last."""

    def __init__(self, steps: int, begin: Callable[[], None], end: Callable[[], None]) -> None:
        super().__init__()
        self._steps, self._begin, self._end = steps, begin, end

    @property
    def num_steps(self) -> int:
        """Steps that were watched."""
        return len(self.warm) * (self._steps - 1)

    def advance(self, steps: int = 1) -> None:
        """Note the end of a batch."""
        super().advance(steps)
        done = len(self.epochs[-1].ticks) if self._running and self.warm else 0
        if done == self._steps:
            self._end()
        elif done == 1:
            self._begin()


@dataclass(frozen=True)
class Function:
    """One function of a profile, with the built-in functions that it calls.

    Attributes:
        name: File, line and name.
        calls: Number of calls.
        seconds: Own time, and that of the built-in functions called from it.
    """

    name: str
    calls: int
    seconds: float

    @property
    def is_work(self) -> bool:
        """Whether it reads images or computes the network."""
        return WORK.search(self.name) is not None

    @property
    def short_name(self) -> str:
        """Its place without the folders above its package."""
        above = r"^.*?/(site-packages/|python3\.\d+/|(?=finetune/\w+/\w+\.py))"
        return re.sub(above, "", self.name)


def profile(run: Callable[[Stopwatch], Any], *, steps: int) -> tuple[list[Function], int]:
    """Return the functions of a run's training steps, dearest first, and the number of steps.

    All epochs but the first count. The profiler makes every call slower, small ones most.
    """
    profiler = cProfile.Profile()
    watch = StepWindow(steps, profiler.enable, profiler.disable)
    run(watch)
    entries: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    seconds: dict[Any, float] = defaultdict(float)
    for key, (_, _, own, _, callers) in entries.items():
        if key[0] != "~" or any(word in key[2] for word in ENGINE):
            seconds[key] += own
            continue
        for caller, (_, _, own_there, _) in callers.items():
            seconds[caller] += own_there
    functions = [Function(_place(key), entries[key][1], seconds[key]) for key in seconds]
    functions.sort(key=lambda function: function.seconds, reverse=True)
    return functions, watch.num_steps


def _place(key: tuple[str, int, str]) -> str:
    file, line, name = key
    return name if file == "~" else f"{file}:{line} {name}"
