"""Positions of a line chart in the coordinates of its SVG."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.report.charts.axis_ticks import format_tick

if TYPE_CHECKING:
    from finetune.report.charts.line_chart import LineChart

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 628, 22, 238
_MAX_DOTS = 40


@dataclass(frozen=True, slots=True)
class Tick:
    """Tick with its position and text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class DrawnBand:
    """Range with its position and label, which is empty where it has no room."""

    left: float
    width: float
    label: str


@dataclass(frozen=True, slots=True)
class DrawnLine:
    """Line as a path of SVG, with its dots."""

    path: str
    points: tuple[tuple[float, float], ...]
    color: str
    dash: str
    width: float
    is_faint: bool


@dataclass(frozen=True, slots=True)
class LineGeometry:
    """Positions of everything in a line chart, in pixels."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bands: tuple[DrawnBand, ...]
    lines: tuple[DrawnLine, ...]
    mark: float | None


def build_geometry(chart: "LineChart") -> LineGeometry:
    """Return the positions of a chart."""
    low, high = chart.y_range
    first, last = chart.x_range

    def locate_x(value: float) -> float:
        return round(_LEFT + (value - first) / (last - first) * (_RIGHT - _LEFT), 1)

    def locate_y(value: float) -> float:
        if chart.kind == "log":
            fraction = math.log(value / low) / math.log(high / low)
        else:
            fraction = (value - low) / (high - low)
        return round(_BOTTOM - fraction * (_BOTTOM - _TOP), 1)

    lines = []
    for line in chart.series:
        runs = _split_into_runs(chart.x, line.values, is_log=chart.kind == "log")
        drawn = [[(locate_x(x), locate_y(y)) for x, y in run] for run in runs]
        path = "".join("M" + "L".join(f"{x} {y}" for x, y in run) for run in drawn)
        points = tuple(point for run in drawn for point in run)
        has_dots = len(chart.x) <= _MAX_DOTS and not line.dash
        width = 1.5 if line.is_faint or line.dash else 2
        lines.append(
            DrawnLine(
                path, points if has_dots else (), line.css_color, line.dash, width, line.is_faint
            )
        )
    return LineGeometry(
        _WIDTH,
        _HEIGHT,
        _LEFT,
        _RIGHT,
        _TOP,
        _BOTTOM,
        tuple(Tick(locate_x(x), f"{x:g}") for x in chart.x_ticks),
        tuple(Tick(locate_y(y), format_tick(y, kind=chart.kind)) for y in chart.y_ticks),
        tuple(_draw_band(locate_x(b.first), locate_x(b.last), b.label) for b in chart.bands),
        tuple(lines),
        None if chart.mark is None else locate_x(chart.mark),
    )


def _draw_band(left: float, right: float, label: str) -> DrawnBand:
    max_letters = int((right - left - 4) / 6)
    is_cut = len(label) > max_letters
    text = label if not is_cut else label[: max_letters - 1].rstrip() + "\u2026"
    return DrawnBand(left, round(right - left, 1), text if max_letters >= 4 else "")


def _split_into_runs(
    x: tuple[float, ...], values: tuple[float | None, ...], *, is_log: bool
) -> list[list[tuple[float, float]]]:
    """Return the points of a line, divided where values are missing or cannot be drawn."""
    runs: list[list[tuple[float, float]]] = [[]]
    for position, value in zip(x, values, strict=True):
        if value is None or not math.isfinite(value) or (is_log and value <= 0):
            runs.append([])
        else:
            runs[-1].append((position, value))
    return [run for run in runs if run]
