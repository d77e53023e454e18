"""Learning-rate factors as pure functions of the step, so that a resume needs no state.

``plateau`` alone depends on the validation metric; see ``plateau.py``.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

MAX_PHASE_WARMUP = 0.3
"""Largest fraction of a phase for its warmup, unless that of the whole run is larger."""

_ROUNDING = 1e-9
"""Least distance to the end of an epoch, in epochs, since the progress is a rounded fraction."""


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


def step(
    progress: float, *, num_epochs: int, every: float | None = None, gamma: float = 0.1
) -> float:
    """Multiply by ``gamma`` after every few epochs, as torch's ``StepLR``; constant in an epoch.

    Args:
        progress: Completed fraction of the run, in [0, 1].
        num_epochs: Number of epochs of the run.
        every: Epochs between two reductions; None for a third of the run, as in He et al. 2016,
            https://arxiv.org/abs/1512.03385.
        gamma: Factor of each reduction, above 0 and at most 1.

    Raises:
        ValueError: A parameter is out of range.
    """
    _check_range("gamma", gamma, is_valid=0 < gamma <= 1, expected="above 0 and at most 1")
    every = max(1, round(num_epochs / 3)) if every is None else every
    _check_range("every", every, is_valid=every >= 1, expected="epochs, 1 or more")
    completed_epochs = math.floor(progress * num_epochs + _ROUNDING)
    reductions = completed_epochs // every
    return float(gamma**reductions)


def exponential(
    progress: float, *, num_epochs: int, gamma: float | None = None, final_factor: float = 0.01
) -> float:
    """Fall by the factor ``gamma`` in each epoch, a little in each step.

    At the start of each epoch it equals torch's ``ExponentialLR``, which is constant in an epoch.

    Args:
        progress: Completed fraction of the run, in [0, 1].
        num_epochs: Number of epochs of the run.
        gamma: Factor of an epoch, above 0 and at most 1; None ends at ``final_factor``.
        final_factor: Value at the end, above 0, unless ``gamma`` is given.

    Raises:
        ValueError: A parameter is out of range.
    """
    if gamma is None:
        _check_range(
            "final_factor", final_factor, is_valid=0 < final_factor <= 1, expected="above 0"
        )
        return float(final_factor**progress)
    _check_range("gamma", gamma, is_valid=0 < gamma <= 1, expected="above 0 and at most 1")
    return float(gamma ** (progress * num_epochs))


def inverse_time(progress: float, *, num_epochs: int, decay: float = 1.0) -> float:
    """Compute 1 / (1 + decay * epochs), with fractions of epochs (Robbins and Monro 1951).

    Args:
        progress: Completed fraction of the run, in [0, 1].
        num_epochs: Number of epochs of the run.
        decay: Decay for each epoch, 0 or more; with 1 the rate is halved after the first epoch.

    Raises:
        ValueError: ``decay`` is out of range.
    """
    _check_range("decay", decay, is_valid=0 <= decay < math.inf, expected="0 or more")
    return 1 / (1 + decay * progress * num_epochs)


def one_cycle(
    progress: float,
    *,
    num_steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    cycle_momentum: bool = True,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
) -> float:
    """Rise to 1 and fall far below the start in one cycle, as torch's ``OneCycleLR``, each step.

    The rates are torch's where the rise has a step or more, ``pct_start * num_steps >= 1``.
    Smith and Topin 2018, https://arxiv.org/abs/1708.07120. Where the optimizer has momentum, it
    falls and rises in turn; see ``one_cycle_momentum``.

    Args:
        progress: Completed fraction of the run, in [0, 1].
        num_steps: Number of optimizer steps of the run.
        pct_start: Fraction of the steps in which the rate rises, above 0 and below 1.
        div_factor: Peak divided by the first rate.
        final_div_factor: First rate divided by the last one.
        anneal_strategy: "cos" or "linear".
        cycle_momentum: Whether the momentum cycles; the rate does not depend on it.
        base_momentum: Momentum at the peak of the rate.
        max_momentum: Momentum at both ends.

    Raises:
        ValueError: A parameter is out of range.
    """
    del cycle_momentum, base_momentum, max_momentum
    for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
        _check_range(name, value, is_valid=1 <= value < math.inf, expected="1 or more")
    start = 1 / div_factor
    points = (start, 1.0, start / final_div_factor)
    return _interpolate_cycle(progress, points, num_steps, pct_start, anneal_strategy)


def one_cycle_momentum(
    progress: float,
    *,
    num_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
) -> float:
    """Compute the momentum of ``one_cycle``: it falls while the learning rate rises.

    Args:
        progress: Completed fraction of the run, in [0, 1].
        num_steps: Number of optimizer steps of the run.
        pct_start: As in ``one_cycle``.
        anneal_strategy: As in ``one_cycle``.
        base_momentum: Momentum at the peak of the rate, in [0, 1).
        max_momentum: Momentum at both ends, in [0, 1).

    Raises:
        ValueError: A parameter is out of range.
    """
    for name, value in (("base_momentum", base_momentum), ("max_momentum", max_momentum)):
        _check_range(name, value, is_valid=0 <= value < 1, expected="0 or more and below 1")
    points = (max_momentum, base_momentum, max_momentum)
    return _interpolate_cycle(progress, points, num_steps, pct_start, anneal_strategy)


def plateau(
    progress: float,
    *,
    factor: float = 0.1,
    patience: int = 2,
    threshold: float = 1e-4,
    cooldown: int = 0,
    min_factor: float = 0.0,
) -> float:
    """Return 1: the part of ``plateau`` that is known before training.

    The parameters are those of ``PlateauFactor``, by which it is multiplied.
    """
    del factor, patience, threshold, cooldown, min_factor
    return constant(progress)


LR_SCHEDULES: Mapping[str, Callable[..., float]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "step": step,
    "exponential": exponential,
    "inverse_time": inverse_time,
    "one_cycle": one_cycle,
    "plateau": plateau,
}
"""Schedules by name, called with the progress, and with ``num_epochs``, ``num_steps`` and
``final_factor`` if they take them."""


def compute_lr_factor(
    step: int,
    *,
    schedule: Callable[[float], float],
    num_steps: int,
    warmup_steps: int,
    phase_starts: Sequence[int] = (0,),
) -> float:
    """Compute the factor at a step: the schedule, with a linear warmup at the start of each phase.

    The warmup of a short phase takes at most ``MAX_PHASE_WARMUP`` of its steps, or as large a
    fraction of them as of all steps if that is more: every phase reaches the rate of the schedule.

    Args:
        step: Number of completed optimizer steps.
        schedule: Function from progress in [0, 1] to factor.
        num_steps: Number of steps of the run.
        warmup_steps: Number of steps of each warmup, in phases that are long enough; 0 disables it.
        phase_starts: Steps at which layers are unfrozen, ascending, the first of them 0.
    """
    factor = schedule(min(1.0, step / max(1, num_steps)))
    if not warmup_steps:
        return factor
    phase = bisect.bisect_right(phase_starts, step) - 1
    start, end = [*phase_starts, max(num_steps, step + 1)][phase : phase + 2]
    longest = (end - start) * max(MAX_PHASE_WARMUP, warmup_steps / num_steps)
    return factor * min(1.0, (step - start + 1) / min(warmup_steps, math.ceil(longest)))


def _interpolate_cycle(
    progress: float,
    points: tuple[float, float, float],
    num_steps: int,
    pct_start: float,
    anneal_strategy: str,
) -> float:
    """Interpolate from the first point to the second, reached after ``pct_start``, to the third."""
    _check_range("pct_start", pct_start, is_valid=0 < pct_start < 1, expected="between 0 and 1")
    if anneal_strategy not in ("cos", "linear"):
        raise ValueError(f"anneal_strategy={anneal_strategy!r} is neither 'cos' nor 'linear'")
    last_step = num_steps - 1
    position = min(progress * num_steps, last_step)
    peak_step = pct_start * num_steps - 1
    if position <= peak_step and peak_step > 0:
        start, end, fraction = points[0], points[1], position / peak_step
    else:
        length = max(last_step - max(0.0, peak_step), _ROUNDING)
        start, end, fraction = points[1], points[2], (position - max(0.0, peak_step)) / length
    if anneal_strategy == "linear":
        return start + (end - start) * fraction
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _check_range(name: str, value: float, *, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"{name}={value} is not {expected}")
