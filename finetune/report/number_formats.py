"""Numbers as the page shows them: filters of the templates."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.units import (
    UNDEFINED,
    format_count,
    format_duration,
    format_percent,
    format_scientific,
)

METRIC_NAMES: Mapping[str, str] = {
    "loss": "Log loss",
    "calibrated_loss": "Calibrated log loss",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "rarest_third_recall": "Recall of the rarest third",
    "top5_accuracy": "Top-5 accuracy",
    "mean_average_precision": "Mean average precision",
    "micro_average_precision": "Micro average precision",
    "subset_accuracy": "Subset accuracy",
    "calibration_error": "Calibration error (ECE)",
}
"""Metric to its name on the page."""

NOT_FINITE = "not finite"
"""A metric that is NaN or infinite, as after a training that diverged."""

_TINY = 1e-9
"""Size up to which a difference is rounding."""

_MINUS = "\u2212"


def format_metric_name(name: str) -> str:
    """Return the name of a metric in words."""
    return METRIC_NAMES.get(name, name.replace("_", " ").capitalize())


def format_metric_in_sentence(name: str) -> str:
    """Return the name of a metric within a sentence: only its first letter may become small."""
    words = format_metric_name(name)
    return words[0].lower() + words[1:]


def is_loss(metric: str) -> bool:
    """Return whether a metric is a loss: no fraction, and lower is better."""
    return metric.endswith("loss")


def format_metric(value: float | None, metric: str) -> str:
    """Return a metric in percent, a loss with three decimals, "undefined" or "not finite"."""
    if value is None:
        return UNDEFINED
    if not math.isfinite(value):
        return NOT_FINITE
    return f"{value:.3f}" if is_loss(metric) else format_percent(value)


def format_close_loss(value: float) -> str:
    """Return a loss that is compared with a close one: with four decimals, or "not finite"."""
    return f"{value:.4f}" if math.isfinite(value) else NOT_FINITE


def format_interval(interval: Sequence[float] | None, metric: str) -> str:
    """Return an interval as ``91.2 to 96.3%``; a dash without one."""
    if interval is None:
        return "\u2013"
    low, high = (format_metric(value, metric) for value in interval)
    return f"{low.removesuffix('%')} to {high}"


def format_difference(value: float, metric: str) -> str:
    """Return a signed difference, in points for fractions.

    One that is not 0 has as many decimals as it needs for a digit, so that the end of an interval
    without 0 is not taken for it.
    """
    size, decimals = (abs(value), 3) if is_loss(metric) else (abs(value) * 100, 1)
    if _TINY < size < 0.5 * 10**-decimals:
        decimals = -math.floor(math.log10(size))
    number = f"{size:.{decimals}f}"
    sign = "" if float(number) == 0 else "+" if value > 0 else _MINUS
    return f"{sign}{number}"


def format_number(value: Any) -> str:
    """Return any number: counts with separators, others in four significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e9):
        return format_count(int(value))
    small = value != 0 and abs(value) < 1e-3
    return format_scientific(value) if small else f"{value:,.4g}"


def format_setting(value: Any) -> str:
    """Return a value of the config as YAML would write it on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format_scientific(value, digits=6)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {format_setting(one)}" for key, one in value.items()) or "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_setting, value)) + "]"
    return str(value)


def capitalize_first(text: str) -> str:
    """Return text with a capital first letter, and the others as they are."""
    return text[:1].upper() + text[1:]


FILTERS = {
    "first_upper": capitalize_first,
    "metric_name": format_metric_name,
    "metric": format_metric,
    "interval": format_interval,
    "difference": format_difference,
    "number": format_number,
    "setting": format_setting,
    "percent": format_percent,
    "count": format_count,
    "close_loss": format_close_loss,
    "duration": format_duration,
    "scientific": format_scientific,
}
"""Name in templates to function."""
