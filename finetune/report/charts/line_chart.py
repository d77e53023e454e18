"""Line chart over epochs: data for the script, and geometry for a drawing in SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune.report.charts.axis_ticks import (
    choose_epoch_ticks,
    choose_linear_ticks,
    choose_log_ticks,
)
from finetune.report.charts.line_geometry import LineGeometry, build_geometry
from finetune.units import format_count

MAX_POINTS_WITH_DOTS = 40
"""Points of a line up to which each has a dot."""


@dataclass(frozen=True, slots=True)
class Line:
    """Line of a chart.

    Attributes:
        label: Name in the legend.
        values: Value at each x; None where there is none.
        color: Custom property of the style sheet, or a color as CSS writes it.
        dash: Lengths of dashes and gaps as in SVG; empty for a solid line.
        is_faint: Whether the line is drawn in the background.
    """

    label: str
    values: tuple[float | None, ...]
    color: str = "--series-1"
    dash: str = ""
    is_faint: bool = False

    @property
    def css_color(self) -> str:
        """Color as CSS writes it."""
        return f"var({self.color})" if self.color.startswith("--") else self.color


@dataclass(frozen=True, slots=True)
class Band:
    """Range of x with a label, such as a phase of training."""

    first: float
    last: float
    label: str


@dataclass(frozen=True)
class LineChart:
    """Lines over the same x.

    Attributes:
        name: Unique on the page.
        title: Quantity, with its unit.
        x: Positions, ascending.
        series: Lines.
        caption: What to look at; may be empty.
        x_label: Quantity along x.
        bands: Labelled ranges of x.
        mark: Position of a vertical line; None for none.
        mark_label: Entry of the legend for it.
        kind: "number", "percent" for fractions, or "log" for positive values of many magnitudes.
    """

    name: str
    title: str
    x: tuple[float, ...]
    series: tuple[Line, ...]
    caption: str = ""
    x_label: str = "epoch"
    bands: tuple[Band, ...] = ()
    mark: float | None = None
    mark_label: str = ""
    kind: str = "number"

    @property
    def description(self) -> str:
        """Description for those who do not see the chart."""
        names = ", ".join(line.label for line in self.series)
        return f"{self.title} over {format_count(len(self.x))} points: {names}."

    @cached_property
    def y_range(self) -> tuple[float, float]:
        """Lowest and highest value of the vertical axis."""
        values = [
            value
            for line in self.series
            for value in line.values
            if value is not None and math.isfinite(value) and (self.kind != "log" or value > 0)
        ]
        if not values:
            return (0.1, 1.0) if self.kind == "log" else (0.0, 1.0)
        low, high = min(values), max(values)
        if self.kind == "log":
            return low / 1.5, high * 1.5
        margin = (high - low) * 0.06 or abs(high) * 0.05 or 0.05
        low = max(0.0, low - margin) if low >= 0 else low - margin
        limit = 1.0 if self.kind == "percent" and high <= 1 else math.inf
        return low, min(limit, high + margin)

    @cached_property
    def y_ticks(self) -> list[float]:
        """Values with a grid line."""
        choose = choose_log_ticks if self.kind == "log" else choose_linear_ticks
        return choose(*self.y_range)

    @cached_property
    def x_range(self) -> tuple[float, float]:
        """First and last position, with the bands around the lines."""
        first = min(self.x[0], *(band.first for band in self.bands), self.x[0])
        last = max(self.x[-1], *(band.last for band in self.bands), self.x[-1])
        return (first - 0.5, last + 0.5) if first == last else (first, last)

    @cached_property
    def x_ticks(self) -> list[float]:
        """Positions with a text."""
        return choose_epoch_ticks(*self.x_range)

    @cached_property
    def geometry(self) -> LineGeometry:
        """Positions of everything in the drawing."""
        return build_geometry(self)

    def to_json(self) -> dict[str, Any]:
        """Return what the script draws."""
        return {
            "x": list(self.x),
            "xLabel": self.x_label,
            "kind": self.kind,
            "xRange": list(self.x_range),
            "xTicks": self.x_ticks,
            "range": list(self.y_range),
            "yTicks": self.y_ticks,
            "hasDots": len(self.x) <= MAX_POINTS_WITH_DOTS,
            "mark": self.mark,
            "bands": [[band.first, band.last, band.label] for band in self.bands],
            "series": [
                {
                    "label": line.label,
                    "color": line.color,
                    "dash": [float(part) for part in line.dash.split()],
                    "isFaint": line.is_faint,
                    "values": [_round(value, is_log=self.kind == "log") for value in line.values],
                }
                for line in self.series
            ],
        }


def _round(value: float | None, *, is_log: bool) -> float | None:
    """Return a value in six digits, None for one that cannot be drawn."""
    if value is None or not math.isfinite(value) or (is_log and value <= 0):
        return None
    return float(f"{value:.6g}")


def collect_column(rows: Sequence[Any], name: str) -> tuple[float | None, ...]:
    """Return a column of rows; None where a row does not have it."""
    return tuple(row.get(name) for row in rows)
