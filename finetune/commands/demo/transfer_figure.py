"""Figure of a transfer experiment: test accuracy by number of images, one line per method."""

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.charts.frame import LEFT, Axis, Frame, draw_document, draw_legend

_COLORS = ("#94a3b8", "#c2410c", "#15803d", "#1d4ed8")


def draw_transfer_figure(tree: Mapping[str, Any]) -> str:
    """Return an SVG document.

    Args:
        tree: Result of the experiment, as ``TransferResult.to_json`` gives it.
    """
    rows = tree["rows"]
    sizes = sorted({row["images_per_class"] for row in rows})
    lowest = min(row["interval"][0] for row in rows)
    bottom = max(0.0, int(lowest * 10) / 10)
    ticks = [bottom + number * (1 - bottom) / 5 for number in range(6)]
    widest = sizes[-1] if len(sizes) > 1 else 2 * sizes[0]
    frame = Frame(
        Axis(
            "training images per class of the target (logarithmic)",
            sizes[0] / 1.1,
            widest * 1.1,
            sizes,
            lambda size: f"{size:g}",
            is_log=True,
        ),
        Axis("test accuracy", bottom, 1.0, ticks, lambda value: f"{value:.0%}"),
    )
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colors = dict(zip(methods, _COLORS, strict=False))
    elements = [
        *_draw_rows(frame, rows, colors),
        *draw_legend(list(colors.items()), left=LEFT, top=46),
    ]
    return draw_document(
        f"Transfer from {_describe(tree['source'])} to {_describe(tree['target'])}", frame, elements
    )


def _draw_rows(
    frame: Frame, rows: list[Mapping[str, Any]], colors: Mapping[str, str]
) -> Iterator[str]:
    """Yield the line of each method, its points and their 95% intervals."""
    for method, color in colors.items():
        own = [row for row in rows if row["method"] == method]
        points = [(row["images_per_class"], row["metrics"]["accuracy"]) for row in own]
        yield frame.draw_polyline(points, color=color)
        for (x, y), row in zip(points, own, strict=True):
            low, high = (frame.locate_y(bound) for bound in row["interval"])
            column = frame.locate_x(x)
            yield (
                f'<path d="M{column:.1f} {low:.1f}V{high:.1f}" stroke="{color}" '
                f'stroke-opacity="0.4" stroke-width="3"/>'
            )
            yield frame.draw_point(x, y, color=color, radius=4)


def _describe(classes: list[str]) -> str:
    """Return class names in short."""
    if len(classes) <= 3:
        return ", ".join(classes)
    return f"{classes[0]} … {classes[-1]} ({len(classes)} classes)"
