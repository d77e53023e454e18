"""Frame of a chart in SVG: title, axes with ticks, legend and positions of values."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 84, 52
BOTTOM_EDGE, RIGHT_EDGE = HEIGHT - BOTTOM, WIDTH - RIGHT

_GRID_COLOR, _AXIS_COLOR, _TEXT_COLOR = "#e2e8f0", "#475569", "#1e293b"


@dataclass(frozen=True, slots=True)
class Axis:
    """Range of values along an axis, its ticks and its label.

    Attributes:
        label: Quantity, with its unit.
        low: First value.
        high: Last value, above ``low``.
        ticks: Values with a grid line.
        format_tick: Text of a tick.
        is_log: Whether equal ratios have equal distances; ``low`` is then positive.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    format_tick: Callable[[float], str]
    is_log: bool = False

    def contains(self, value: float) -> bool:
        """Return whether a value is within the axis."""
        return self.low <= value <= self.high

    def compute_fraction(self, value: float) -> float:
        """Return the position of a value, 0 at ``low`` and 1 at ``high``."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Frame:
    """Two axes in the coordinates of the document.

    Attributes:
        x: Horizontal axis.
        y: Vertical axis.
    """

    x: Axis
    y: Axis

    def locate_x(self, value: float) -> float:
        """Return the horizontal position of a value, in pixels."""
        return LEFT + self.x.compute_fraction(value) * (RIGHT_EDGE - LEFT)

    def locate_y(self, value: float) -> float:
        """Return the vertical position of a value, in pixels."""
        return BOTTOM_EDGE - self.y.compute_fraction(value) * (BOTTOM_EDGE - TOP)

    def draw_polyline(self, points: Iterable[tuple[float, float]], *, color: str) -> str:
        """Return a line through points, clipped to the frame."""
        vertices = [f"{self.locate_x(x):.1f} {self.locate_y(y):.1f}" for x, y in points]
        return (
            f'<path d="M{" L".join(vertices)}" fill="none" stroke="{color}" '
            f'stroke-width="2" stroke-linejoin="round" clip-path="url(#chart)"/>'
        )

    def draw_point(self, x: float, y: float, *, color: str, radius: float) -> str:
        """Return a filled circle."""
        return (
            f'<circle cx="{self.locate_x(x):.1f}" cy="{self.locate_y(y):.1f}" r="{radius:g}" '
            f'fill="{color}"/>'
        )


def draw_document(title: str, frame: Frame, elements: Iterable[str]) -> str:
    """Return an SVG document of a titled frame with elements drawn into it."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12" '
        f'fill="{_TEXT_COLOR}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<clipPath id="chart"><rect x="{LEFT}" y="{TOP}" width="{RIGHT_EDGE - LEFT}" '
        f'height="{BOTTOM_EDGE - TOP}"/></clipPath>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
        *_draw_axes(frame),
        *elements,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def draw_legend(entries: Sequence[tuple[str, str]], *, left: float, top: float) -> Iterator[str]:
    """Yield a row of colored squares with labels.

    Args:
        entries: Label and color of each.
        left: Left edge of the first square, in pixels.
        top: Upper edge of the squares, in pixels.
    """
    for label, color in entries:
        yield f'<rect x="{left:.0f}" y="{top}" width="12" height="12" fill="{color}"/>'
        yield f'<text x="{left + 17:.0f}" y="{top + 10}">{escape(label)}</text>'
        left += 40 + 7 * len(label)


def _draw_axes(frame: Frame) -> Iterator[str]:
    for value in frame.x.ticks:
        x = frame.locate_x(value)
        yield f'<path d="M{x:.1f} {TOP}V{BOTTOM_EDGE}" stroke="{_GRID_COLOR}"/>'
        yield (
            f'<text x="{x:.1f}" y="{BOTTOM_EDGE + 18}" text-anchor="middle">'
            f"{escape(frame.x.format_tick(value))}</text>"
        )
    for value in frame.y.ticks:
        y = frame.locate_y(value)
        yield f'<path d="M{LEFT} {y:.1f}H{RIGHT_EDGE}" stroke="{_GRID_COLOR}"/>'
        yield (
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(frame.y.format_tick(value))}</text>"
        )
    yield f'<path d="M{LEFT} {TOP}V{BOTTOM_EDGE}H{RIGHT_EDGE}" stroke="{_AXIS_COLOR}" fill="none"/>'
    middle = (LEFT + RIGHT_EDGE) / 2
    yield (
        f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(frame.x.label)}</text>'
    )
    middle = (TOP + BOTTOM_EDGE) / 2
    yield (
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(frame.y.label)}</text>"
    )
