"""Curve of a learning-rate range test as text, and the summary below it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.units import format_scientific

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter

_NUM_COLUMNS, _NUM_ROWS = 70, 16
_LABEL_WIDTH = 7
_TICKS_EVERY_ROWS = 5
_MARKS = (
    ("M", "lr", "rate of the run"),
    ("S", "steepest_lr", "steepest descent of the loss"),
    ("T", "minimum_lr_divided_by_10", "minimum of the loss, divided by 10"),
)
"""Letter, key and meaning of the marked learning rates."""


def show_lr_test(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    """Print the curve, the rate that the run takes, and the commands that train it.

    Args:
        reporter: Console.
        tree: Result of ``find_learning_rate`` as JSON values.
    """
    test, run_dir = tree["lr_find"], tree["run_dir"]
    for line in build_lr_chart(test):
        reporter.note(line)
    for line in describe_lr_test(test):
        reporter.note(line)
    reporter.note(f"Files: {', '.join(tree['files'])}")
    resume = ["finetune", "fit", "--resume", run_dir]
    reporter.print_commands("Next:", [resume, [*resume, "--lr", "RATE"]])


def describe_lr_test(test: Mapping[str, Any]) -> list[str]:
    """Return sentences on the rate that the run takes and those that the test suggests."""
    reason = f": {test['reason']}" if test["reason"] else ""
    kind = "measured" if test["is_measured"] else "not measured"
    lines = [f"The run takes a learning rate of {format_scientific(test['lr'])} ({kind}{reason})."]
    if test["steepest_lr"] is None:
        lines.append(
            "The training loss does not fall below its start by more than its noise, so the range "
            "test suggests no rate."
        )
        return lines
    lines.append(
        f"The range test suggests {format_scientific(test['steepest_lr'])} (steepest descent) or "
        f"{format_scientific(test['minimum_lr_divided_by_10'])} (minimum / 10). It sees the loss "
        f"of a few steps on training images, not what they cost on others."
    )
    return lines


def build_lr_chart(test: Mapping[str, Any]) -> list[str]:
    """Return lines of at most 80 characters: loss (·) and smoothed loss (•) over the rate.

    Losses above the chart, where training diverges, are in its first row (^).
    """
    points = test["points"]
    rates = [point["lr"] for point in points]
    low, high = test["loss_limits"]
    cells = [[" "] * _NUM_COLUMNS for _ in range(_NUM_ROWS)]
    letters = _plot_marks(cells, rates, test)
    for key, symbol in (("loss", "·"), ("smoothed_loss", "•")):
        for point in points:
            row = round((high - point[key]) / (high - low) * (_NUM_ROWS - 1))
            column = _find_column(point["lr"], rates)
            cells[max(0, row)][column] = symbol if row >= 0 else "^"
    lines = []
    for row, cell in enumerate(cells):
        loss = high - (high - low) * row / (_NUM_ROWS - 1)
        label = f"{loss:.3g}" if row % _TICKS_EVERY_ROWS == 0 else ""
        lines.append(f"{label:>{_LABEL_WIDTH}} {'┤' if label else '│'}{''.join(cell)}".rstrip())
    return [
        f"{'loss':>{_LABEL_WIDTH}}    · of a batch   • smoothed   ^ above the chart",
        f"{' ' * (_LABEL_WIDTH + 2)}{''.join(letters).rstrip()}",
        *lines,
        *_build_axis(rates),
        *_build_legend(test),
    ]


def _find_column(rate: float, rates: Sequence[float]) -> int:
    """Return the column of a learning rate between the first and the last one."""
    fraction = math.log(rate / rates[0]) / math.log(rates[-1] / rates[0])
    return round(fraction * (_NUM_COLUMNS - 1))


def _plot_marks(
    cells: list[list[str]], rates: Sequence[float], test: Mapping[str, Any]
) -> list[str]:
    """Draw a vertical line for each marked rate within the chart; return the row of letters."""
    letters = [" "] * _NUM_COLUMNS
    for letter, key, _ in reversed(_MARKS):
        rate = test[key]
        if rate is None or not rates[0] <= rate <= rates[-1]:
            continue
        column = _find_column(rate, rates)
        letters[column] = letter
        for row in cells:
            row[column] = "┆"
    return letters


def _build_axis(rates: Sequence[float]) -> list[str]:
    """Return the axis of the learning rate, with a tick at each power of ten."""
    axis, labels = ["─"] * _NUM_COLUMNS, [" "] * _NUM_COLUMNS
    first = math.ceil(math.log10(rates[0]) - 1e-9)
    for exponent in range(first, math.floor(math.log10(rates[-1]) + 1e-9) + 1):
        column = min(max(_find_column(10.0**exponent, rates), 0), _NUM_COLUMNS - 1)
        axis[column] = "┴"
        label = f"1e{exponent}" if exponent else "1"
        start = min(max(column - len(label) // 2, 0), _NUM_COLUMNS - len(label))
        labels[start : start + len(label)] = label
    indent = " " * (_LABEL_WIDTH + 1)
    return [f"{indent}└{''.join(axis)}", f"{indent} {''.join(labels).rstrip()}"]


def _build_legend(test: Mapping[str, Any]) -> list[str]:
    return [
        f"{letter:>{_LABEL_WIDTH}}  {format_scientific(test[key]):<8} {meaning}"
        for letter, key, meaning in _MARKS
        if test[key] is not None
    ]
