"""The table of compared backbones, in the width of the console."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

_MIN_NAME_WIDTH = 12
_METRIC_COLUMNS = {
    "macro_f1": ("macro F1\n%", "macro_f1"),
    "balanced_accuracy": ("balanced\n%", "balanced_accuracy"),
}

Row = Mapping[str, Any]


def build_comparison_table(tree: Mapping[str, Any], *, width: int) -> Table:
    """Return the rows of a comparison as a table that is no wider than ``width``.

    Columns move together before names are broken; a name that is too long even then goes on in the
    next line, after one of its own signs.

    Args:
        tree: As ``CompareResult.as_json`` gives it, with one row at least.
        width: Of the console, in characters; with less than 70 or so the table is wider.
    """
    rows: Sequence[Row] = tree["backbones"]
    columns = _build_columns(rows, tree["sorted_by"])
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    below = zip(*cells, strict=True)
    taken = sum(
        _measure_width([*head.split("\n"), *column])
        for head, column in zip(columns, below, strict=True)
    )
    longest = _measure_width(["backbone", *(row["backbone"] for row in rows)])
    gap = 2 if longest + taken + 2 * len(columns) <= width else 1
    room = max(_MIN_NAME_WIDTH, width - taken - gap * len(columns))
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("\nbackbone", no_wrap=True)
    for head in columns:
        table.add_column(head, justify="right", no_wrap=True)
    for row, line in zip(rows, cells, strict=True):
        table.add_row(escape(wrap_name(row["backbone"], room)), *line)
    return table


def wrap_name(name: str, width: int) -> str:
    """Return a name in lines of at most ``width``, broken after signs where it has some."""
    lines = [""]
    for part in re.findall(r"[^-_./:]*[-_./:]|[^-_./:]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _build_columns(rows: Sequence[Row], sort_metric: str) -> dict[str, Callable[[Row], str]]:
    """Return the columns after the first: a head of two lines, and the cell of a row."""
    columns: dict[str, Callable[[Row], str]] = {
        "params\nM": lambda row: _format_number(row["parameters"] / 1e6),
        "MACs\nG": lambda row: _format_number(row["gmacs"]),
        "images\n/s": lambda row: _format_number(row["images_per_second"]),
        "memory\nGB": lambda row: _format_number(row["training_memory_gb"]),
        "accuracy %\n(95% interval)": _format_accuracy,
    }
    if sort_metric in _METRIC_COLUMNS:
        head, name = _METRIC_COLUMNS[sort_metric]
        columns[head] = lambda row: f"{100 * row['metrics'][name]:.1f}"
    elif sort_metric == "loss":
        columns["\nloss"] = lambda row: f"{row['metrics']['loss']:.4f}"
    if any(row["imagenet_top1_error"] is not None for row in rows):
        columns["ImageNet\nerror %"] = _format_imagenet_error
    return columns


def _format_accuracy(row: Row) -> str:
    low, high = row["accuracy_interval"]
    return f"{100 * row['metrics']['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _format_imagenet_error(row: Row) -> str:
    top1, top5 = row["imagenet_top1_error"], row["imagenet_top5_error"]
    return "" if top1 is None else f"{top1:.1f}/{top5:.1f}"


def _format_number(value: float | None) -> str:
    """Return a number in three digits or so, and a dash for none."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _measure_width(lines: Sequence[str]) -> int:
    return max(map(len, lines))
