"""Table of an int8 or fp16 file beside that in fp32."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.units import format_bytes, format_count, format_percent

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter

_TITLES = {
    "mean_average_precision": "mean average precision",
    "macro_f1": "macro F1",
    "loss": "log loss",
}
"""Names of metrics in the table."""

_MAX_DECIMALS = 6
"""Decimals of a change in the table; a smaller one has an exponent."""


def show_precision(
    reporter: "ConsoleReporter", comparison: Mapping[str, Any], *, split: str | None
) -> None:
    """Print the table of a smaller file, and the loss with its interval.

    Args:
        reporter: Receiver of the table.
        comparison: JSON values, see ``PrecisionComparison``.
        split: Split of the compared images; None for other images.
    """
    precision = comparison["precision"]
    before, after = comparison["fp32"], comparison[precision]
    rows = [
        [
            "size",
            format_bytes(before["bytes"]),
            format_bytes(after["bytes"]),
            f"{after['bytes'] / before['bytes']:.2f} times",
        ],
        [
            "images per second",
            f"{before['images_per_second']:.1f}",
            f"{after['images_per_second']:.1f}",
            f"{comparison['speedup']:.2f} times",
        ],
    ]
    prefix = "" if split is None else f"{split} "
    if "accuracy" in before:
        drop = comparison["drop"]["points"]
        cells = [_format_accuracy(facts) for facts in (before, after)]
        rows.append([f"{prefix}accuracy", *cells, _format_signed(-drop, " points")])
    for name, title in _TITLES.items():
        if name in before:
            change = _format_signed(after[name] - before[name], "", decimals=4)
            values = (f"{facts[name]:.4f}" for facts in (before, after))
            rows.append([prefix + title, *values, change])
    reporter.print_rows(["", "fp32", precision, "change"], rows)
    threads = format_count(comparison["num_threads"], "thread")
    reporter.print_pairs(
        {
            "gained" if comparison["drop"]["points"] < 0 else "lost": _describe_drop(
                comparison["drop"]
            ),
            "timed on": f"{comparison['processor']}, {threads}, "
            f"batches of {comparison['batch_size']}",
            "layers": comparison["quantization"]["description"],
        }
    )


def _format_accuracy(facts: Mapping[str, Any]) -> str:
    low, high = facts["accuracy_interval"]
    return f"{format_percent(facts['accuracy'])} ({100 * low:.0f}-{100 * high:.0f})"


def _format_signed(value: float, unit: str, *, decimals: int = 2) -> str:
    """Return a change with its sign; a small one with two digits, however many decimals it takes.

    Args:
        value: Change.
        unit: Unit, with a space before it; "" for none.
        decimals: Decimals where these do not round the change to 0.
    """
    if value == 0:
        return f"0{unit}"
    if abs(value) < 10**-_MAX_DECIMALS:
        return f"{value:+.1e}{unit}"
    if float(f"{value:.{decimals}f}") == 0:
        decimals = min(_MAX_DECIMALS, 1 - math.floor(math.log10(abs(value))))
    return f"{value:+.{decimals}f}{unit}"


def _describe_drop(drop: Mapping[str, Any]) -> str:
    """Return the lost or gained points with their interval, and how many may be lost."""
    noun = {"agreement": "agreement with the evaluated model", "macro_f1": "macro F1"}.get(
        drop["metric"], drop["metric"].replace("_", " ")
    )
    is_gain = drop["points"] < 0
    interval = ""
    if drop["low"] is not None:
        low, high = (-drop["high"], -drop["low"]) if is_gain else (drop["low"], drop["high"])
        interval = f" (95% interval {low:.1f} to {high:.1f})"
    return (
        f"{abs(drop['points']):.2f} points of {noun}{interval} on {drop['num_images']} images; "
        f"{'a loss of ' if is_gain else ''}{drop['max_points']:g} "
        f"{'is' if is_gain or drop['max_points'] == 1 else 'are'} allowed"
    )
