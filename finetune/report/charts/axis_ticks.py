"""Ticks of axes at round values, and their texts."""

import math

from finetune.units import format_scientific


def choose_linear_ticks(low: float, high: float, *, max_ticks: int = 6) -> list[float]:
    """Return multiples of 1, 2, 2.5 or 5 times a power of ten within a range."""
    rough = (high - low) / max_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def choose_log_ticks(low: float, high: float, *, max_ticks: int = 6) -> list[float]:
    """Return powers of ten within a range; of a short one, 2 and 5 times them, too."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / max_ticks))
    powers = [10.0**power for power in range(first, last + 1) if (power - first) % every == 0]
    ticks = [tick for tick in powers if low <= tick <= high]
    if len(ticks) >= 3:
        return ticks
    ticks = [factor * 10.0**p for p in range(first, last + 1) for factor in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def choose_epoch_ticks(low: float, high: float, *, max_ticks: int = 10) -> list[float]:
    """Return whole numbers within a range."""
    if high - low <= max_ticks:
        return [float(value) for value in range(math.ceil(low), math.floor(high) + 1)]
    return [tick for tick in choose_linear_ticks(low, high, max_ticks=max_ticks) if tick % 1 == 0]


def format_tick(value: float, *, kind: str) -> str:
    """Return the text of a tick.

    Args:
        value: Position of the tick.
        kind: "number", "percent" or "log".
    """
    if kind == "percent":
        return f"{value * 100:.4g}%"
    return format_scientific(value, digits=3)
