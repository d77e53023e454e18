"""Table of an int8 or fp16 file beside that in fp32."""

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
            "lost": _describe_drop(comparison["drop"]),
            "timed on": f"{comparison['processor']}, {threads}, "
            f"batches of {comparison['batch_size']}",
            "layers": comparison["quantization"]["description"],
        }
    )


def _format_accuracy(facts: Mapping[str, Any]) -> str:
    low, high = facts["accuracy_interval"]
    return f"{format_percent(facts['accuracy'])} ({100 * low:.0f}-{100 * high:.0f})"


def _format_signed(value: float, unit: str, *, decimals: int = 2) -> str:
    text = f"{value:+.{decimals}f}"
    return ("0" if float(text) == 0 else text) + unit


def _describe_drop(drop: Mapping[str, Any]) -> str:
    """Return the lost points with their interval, and how many were allowed."""
    noun = {"agreement": "agreement with the evaluated model", "macro_f1": "macro F1"}.get(
        drop["metric"], drop["metric"].replace("_", " ")
    )
    interval = (
        "" if drop["low"] is None else f" (95% interval {drop['low']:.1f} to {drop['high']:.1f})"
    )
    return (
        f"{drop['points']:.2f} points of {noun}{interval} on {drop['num_images']} images; allowed: "
        f"{drop['max_points']:g}"
    )
