"""Learning-rate factors as pure functions of the step: they hold no state, so resume needs none."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence


def cosine(progress: float, *, final_factor: float = 0.0) -> float:
    """Return the half cosine from 1 to ``final_factor`` (Loshchilov and Hutter 2017, eq. 5).

    https://arxiv.org/abs/1608.03983

    Args:
        progress: Share of the run that is done, in [0, 1].
        final_factor: The value at the end.
    """
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float, *, final_factor: float = 0.0) -> float:
    """Return the straight line from 1 to ``final_factor``; ``progress`` in [0, 1]."""
    return 1 + (final_factor - 1) * progress


def constant(progress: float) -> float:
    """Return 1, whatever the progress."""
    del progress
    return 1.0


LR_SCHEDULES: Mapping[str, Callable[..., float]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
}


def compute_lr_factor(
    step: int,
    *,
    schedule: Callable[[float], float],
    num_steps: int,
    warmup_steps: int,
    phase_starts: Sequence[int] = (0,),
) -> float:
    """Return the factor at a step: the shape, raised linearly after the start of each phase.

    Args:
        step: Optimizer steps that are done.
        schedule: Progress in [0, 1] to factor.
        num_steps: Steps of the run.
        warmup_steps: Steps of each rise; 0 starts at once.
        phase_starts: Steps at which layers thaw, ascending, the first of them 0.
    """
    factor = schedule(min(1.0, step / max(1, num_steps)))
    since = step - phase_starts[bisect.bisect_right(phase_starts, step) - 1]
    return factor * min(1.0, (since + 1) / warmup_steps) if warmup_steps else factor
