"""Figure of a learning-rate range test."""

import math
from collections.abc import Iterator, Mapping

from finetune.charts.frame import (
    BOTTOM_EDGE,
    LEFT,
    TOP,
    WIDTH,
    Axis,
    Frame,
    draw_document,
    draw_legend,
)
from finetune.training.optimization.range_test import RangeTest, compute_loss_limits
from finetune.units import format_scientific

_MARK_COLORS = ("#c2410c", "#15803d", "#7e22ce")
_CURVE_COLOR, _POINT_COLOR = "#1d4ed8", "#94a3b8"


def draw_lr_figure(test: RangeTest, *, marks: Mapping[str, float | None]) -> str:
    """Return an SVG document with the losses of a range test over the learning rate.

    Args:
        test: Range test with two points or more.
        marks: Label to the learning rate of a vertical line; None draws none.
    """
    low, high = compute_loss_limits(test.losses, test.smoothed_losses)
    first, last = test.rates[0], test.rates[-1]
    exponents = range(math.ceil(math.log10(first) - 1e-9), math.floor(math.log10(last) + 1e-9) + 1)
    powers = [10.0**exponent for exponent in exponents]
    losses = [low + number / 5 * (high - low) for number in range(6)]
    frame = Frame(
        Axis("learning rate", first, last, powers, _format_power, is_log=True),
        Axis("training loss", low, high, losses, lambda loss: f"{loss:.3g}"),
    )
    elements = [*_draw_points(frame, test), *_draw_marks(frame, marks)]
    return draw_document("Learning-rate range test", frame, elements)


def _format_power(value: float) -> str:
    exponent = round(math.log10(value))
    return f"1e{exponent}" if exponent else "1"


def _draw_points(frame: Frame, test: RangeTest) -> Iterator[str]:
    for rate, loss in zip(test.rates, test.losses, strict=True):
        if loss <= frame.y.high:
            yield frame.draw_point(rate, loss, color=_POINT_COLOR, radius=2)
    yield frame.draw_polyline(
        zip(test.rates, test.smoothed_losses, strict=True), color=_CURVE_COLOR
    )


def _draw_marks(frame: Frame, marks: Mapping[str, float | None]) -> Iterator[str]:
    """Yield a dashed line for each mark within the axis, and the legend."""
    legend = []
    for (label, lr), color in zip(marks.items(), _MARK_COLORS, strict=False):
        if lr is None:
            continue
        legend.append((f"{label}: {format_scientific(lr)}", color))
        if frame.x.contains(lr):
            yield (
                f'<path d="M{frame.locate_x(lr):.1f} {TOP}V{BOTTOM_EDGE}" '
                f'stroke="{color}" stroke-width="1.5" stroke-dasharray="5 3"/>'
            )
    yield from draw_legend(legend, left=LEFT, top=46)
    curves = [("loss of a batch", _POINT_COLOR), ("smoothed loss", _CURVE_COLOR)]
    yield from draw_legend(curves, left=WIDTH // 2, top=14)
