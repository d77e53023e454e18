"""Frame of a chart: positions of values, and well-formed documents."""

from xml.etree import ElementTree

import pytest

from finetune.charts.frame import (
    BOTTOM_EDGE,
    LEFT,
    RIGHT_EDGE,
    TOP,
    Axis,
    Frame,
    draw_document,
    draw_legend,
)


def create_frame() -> Frame:
    return Frame(
        Axis("images <n>", 10, 1000, [10, 100, 1000], str, is_log=True),
        Axis("accuracy & more", 0.5, 1.0, [0.5, 1.0], lambda value: f"{value:.0%}"),
    )


@pytest.mark.parametrize(("value", "fraction"), [(10, 0.0), (100, 0.5), (1000, 1.0)])
def test_log_axis_places_equal_ratios_at_equal_distances(value: float, fraction: float) -> None:
    x = create_frame().locate_x(value)
    assert x == pytest.approx(LEFT + fraction * (RIGHT_EDGE - LEFT))


@pytest.mark.parametrize(("value", "y"), [(0.5, BOTTOM_EDGE), (1.0, TOP)])
def test_linear_axis_places_larger_values_higher(value: float, y: float) -> None:
    assert create_frame().locate_y(value) == pytest.approx(y)


def test_document_is_well_formed_and_escapes_labels() -> None:
    frame = create_frame()
    elements = [
        frame.draw_polyline([(10, 0.6), (100, 0.8)], color="#000000"),
        frame.draw_point(100, 0.8, color="#000000", radius=3),
        *draw_legend([("a < b", "#000000")], left=10, top=40),
    ]
    document = draw_document("1 < 2", frame, elements)
    texts = [element.text for element in ElementTree.fromstring(document).iter()]
    assert {"1 < 2", "images <n>", "accuracy & more", "a < b", "50%"} <= set(texts)
