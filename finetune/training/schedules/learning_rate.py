"""Learning-rate factors as pure functions of the step, so that a resume needs no state."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence


def cosine(progress: float, *, final_factor: float = 0.0) -> float:
    """Compute the half cosine from 1 to ``final_factor`` (Loshchilov and Hutter 2017, eq. 5).

    https://arxiv.org/abs/1608.03983

    Args:
        progress: Completed fraction of the run, in [0, 1].
        final_factor: Value at the end.
    """
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float, *, final_factor: float = 0.0) -> float:
    """Interpolate linearly from 1 to ``final_factor``.

    Args:
        progress: Completed fraction of the run, in [0, 1].
        final_factor: Value at the end.
    """
    return 1 + (final_factor - 1) * progress


def constant(progress: float) -> float:
    """Return 1 at any progress."""
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
    """Compute the factor at a step: the schedule, with a linear warmup at the start of each phase.

    Args:
        step: Number of completed optimizer steps.
        schedule: Function from progress in [0, 1] to factor.
        num_steps: Number of steps of the run.
        warmup_steps: Number of steps of each warmup; 0 disables it.
        phase_starts: Steps at which layers are unfrozen, ascending, the first of them 0.
    """
    factor = schedule(min(1.0, step / max(1, num_steps)))
    steps_in_phase = step - phase_starts[bisect.bisect_right(phase_starts, step) - 1]
    return factor * min(1.0, (steps_in_phase + 1) / warmup_steps) if warmup_steps else factor
