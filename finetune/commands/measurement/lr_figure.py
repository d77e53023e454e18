"""Figure of a learning-rate range test as self-contained SVG."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune.training.optimization.range_test import RangeTest, compute_loss_limits
from finetune.units import format_scientific

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 84, 52
_MARK_COLORS = ("#c2410c", "#15803d", "#7e22ce")
_CURVE_COLOR, _POINT_COLOR = "#1d4ed8", "#94a3b8"


@dataclass(frozen=True, slots=True)
class _Axes:
    """Position of rates (logarithmic) and losses in the figure."""

    first_lr: float
    last_lr: float
    low: float
    high: float

    def locate_lr(self, lr: float) -> float:
        """Return the horizontal position of a learning rate."""
        fraction = math.log(lr / self.first_lr) / math.log(self.last_lr / self.first_lr)
        return _LEFT + fraction * (_WIDTH - _LEFT - _RIGHT)

    def locate_loss(self, loss: float) -> float:
        """Return the vertical position of a loss."""
        fraction = (loss - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - fraction * (_HEIGHT - _TOP - _BOTTOM)

    def contains_lr(self, lr: float) -> bool:
        """Return whether a learning rate is within the axis."""
        return self.first_lr <= lr <= self.last_lr


def draw_lr_figure(test: RangeTest, *, marks: Mapping[str, float | None]) -> str:
    """Return an SVG document with the losses of a range test over the learning rate.

    Args:
        test: Range test with two points or more.
        marks: Label to the learning rate of a vertical line; None draws none.
    """
    low, high = compute_loss_limits(test.losses, test.smoothed_losses)
    axes = _Axes(test.rates[0], test.rates[-1], low, high)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12" '
        f'fill="#1e293b">',
        "<title>Learning-rate range test</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="15" font-weight="bold">'
        f"Learning-rate range test</text>",
        *_draw_axes(axes),
        *_draw_points(axes, test),
        *_draw_marks(axes, marks),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _draw_axes(axes: _Axes) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    first, last = math.log10(axes.first_lr), math.log10(axes.last_lr)
    for exponent in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
        x = axes.locate_lr(10.0**exponent)
        yield f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="#e2e8f0"/>'
        yield (
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{f'1e{exponent}' if exponent else '1'}</text>"
        )
    for number in range(6):
        loss = axes.low + number / 5 * (axes.high - axes.low)
        y = axes.locate_loss(loss)
        yield f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#e2e8f0"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:.3g}</text>'
    yield f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" stroke="#475569" fill="none"/>'
    middle = (_LEFT + right) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">learning rate</text>'
    middle = (_TOP + bottom) / 2
    yield (
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">'
        f"training loss</text>"
    )


def _draw_points(axes: _Axes, test: RangeTest) -> Iterator[str]:
    for rate, loss in zip(test.rates, test.losses, strict=True):
        if loss <= axes.high:
            x, y = axes.locate_lr(rate), axes.locate_loss(loss)
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{_POINT_COLOR}"/>'
    vertices = [
        f"{axes.locate_lr(rate):.1f} {axes.locate_loss(loss):.1f}"
        for rate, loss in zip(test.rates, test.smoothed_losses, strict=True)
    ]
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    yield (
        f'<clipPath id="chart"><rect x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}"/>'
        f"</clipPath>"
    )
    yield (
        f'<path d="M{" L".join(vertices)}" fill="none" stroke="{_CURVE_COLOR}" '
        f'stroke-width="2" stroke-linejoin="round" clip-path="url(#chart)"/>'
    )


def _draw_marks(axes: _Axes, marks: Mapping[str, float | None]) -> Iterator[str]:
    """Yield a dashed line for each mark within the axis, and the legend."""
    legend = []
    for (label, lr), color in zip(marks.items(), _MARK_COLORS, strict=False):
        if lr is None:
            continue
        legend.append((f"{label}: {format_scientific(lr)}", color))
        if axes.contains_lr(lr):
            yield (
                f'<path d="M{axes.locate_lr(lr):.1f} {_TOP}V{_HEIGHT - _BOTTOM}" '
                f'stroke="{color}" stroke-width="1.5" stroke-dasharray="5 3"/>'
            )
    yield from _draw_legend(legend, left=_LEFT, top=46)
    curves = [("loss of a batch", _POINT_COLOR), ("smoothed loss", _CURVE_COLOR)]
    yield from _draw_legend(curves, left=_WIDTH // 2, top=14)


def _draw_legend(entries: Sequence[tuple[str, str]], *, left: float, top: float) -> Iterator[str]:
    """Yield a row of colored squares with labels."""
    for label, color in entries:
        yield f'<rect x="{left:.0f}" y="{top}" width="12" height="12" fill="{color}"/>'
        yield f'<text x="{left + 17:.0f}" y="{top + 10}">{label}</text>'
        left += 40 + 7 * len(label)
