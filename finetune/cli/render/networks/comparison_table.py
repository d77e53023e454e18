"""Table of compared backbones, fitted to the width of the console."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

_MIN_NAME_WIDTH = 12
_COMPARED_METRICS = {
    "accuracy": "accuracy %\n(95% interval)",
    "mean_average_precision": "mean avg. prec. %\n(95% interval)",
}
"""Metric with an interval, and the header of its column."""

_METRIC_COLUMNS = {
    "macro_f1": ("macro F1\n%", "macro_f1"),
    "balanced_accuracy": ("balanced\n%", "balanced_accuracy"),
    "micro_f1": ("micro F1\n%", "micro_f1"),
    "micro_average_precision": ("micro\na. p. %", "micro_average_precision"),
    "subset_accuracy": ("subset\nacc. %", "subset_accuracy"),
}

Row = Mapping[str, Any]


def build_comparison_table(tree: Mapping[str, Any], *, width: int) -> Table:
    """Return a table with one row per backbone, at most ``width`` characters wide.

    The gaps between columns shrink before names are wrapped; a name that is still too long
    continues on the next line after one of its separators.

    Args:
        tree: Comparison as ``CompareResult.to_json`` returns it, with at least one backbone.
        width: Width of the console in characters; below about 70 the table is wider.
    """
    rows: Sequence[Row] = tree["backbones"]
    columns = _build_columns(rows, tree["sorted_by"])
    cells = [[format_cell(row) for format_cell in columns.values()] for row in rows]
    used_width = sum(
        _measure_width([*header.split("\n"), *column])
        for header, column in zip(columns, zip(*cells, strict=True), strict=True)
    )
    name_width = _measure_width(["backbone", *(row["backbone"] for row in rows)])
    gap = 2 if name_width + used_width + 2 * len(columns) <= width else 1
    max_name_width = max(_MIN_NAME_WIDTH, width - used_width - gap * len(columns))
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("\nbackbone", no_wrap=True)
    for header in columns:
        table.add_column(header, justify="right", no_wrap=True)
    for row, line in zip(rows, cells, strict=True):
        table.add_row(escape(wrap_name(row["backbone"], max_name_width)), *line)
    return table


def wrap_name(name: str, width: int) -> str:
    """Return a name in lines of at most ``width`` characters, broken after its separators."""
    lines = [""]
    for part in re.findall(r"[^-_./:]*[-_./:]|[^-_./:]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _build_columns(rows: Sequence[Row], sort_metric: str) -> dict[str, Callable[[Row], str]]:
    """Return the two-line header and the cell format of each column after the first."""
    compared = find_compared_metric(rows[0])
    columns: dict[str, Callable[[Row], str]] = {
        "params\nM": lambda row: _format_number(row["num_parameters"] / 1e6),
        "MACs\nG": lambda row: _format_number(row["gmacs"]),
        "images\n/s": lambda row: _format_number(row["images_per_second"]),
        "memory\nGB": lambda row: _format_number(row["training_memory_gb"]),
        _COMPARED_METRICS[compared]: lambda row: _format_interval(row, compared),
    }
    if sort_metric in _METRIC_COLUMNS:
        header, name = _METRIC_COLUMNS[sort_metric]
        columns[header] = lambda row: f"{100 * row['metrics'][name]:.1f}"
    elif sort_metric == "loss":
        columns["\nloss"] = lambda row: f"{row['metrics']['loss']:.4f}"
    if any(row["imagenet_top1_error"] is not None for row in rows):
        columns["ImageNet\nerror %"] = _format_imagenet_error
    return columns


def find_compared_metric(row: Row) -> str:
    """Return the metric with an interval, by which the differences of backbones are judged."""
    return next(name for name in _COMPARED_METRICS if name in row["metrics"])


def _format_interval(row: Row, metric: str) -> str:
    low, high = row[f"{metric}_interval"]
    return f"{100 * row['metrics'][metric]:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _format_imagenet_error(row: Row) -> str:
    top1, top5 = row["imagenet_top1_error"], row["imagenet_top5_error"]
    if top1 is None:
        return ""
    # aligned with figures that have a mark
    return f"{top1:.1f}/{top5:.1f}{' ' if row['imagenet_is_of_weights'] else '*'}"


def _format_number(value: float | None) -> str:
    """Return a number with about three significant digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _measure_width(lines: Sequence[str]) -> int:
    return max(map(len, lines))
