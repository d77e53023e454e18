"""Tests of the map of images: its points, its sheet of thumbnails, and its script."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from finetune.commands.report.collect import read_facts
from finetune.commands.report.photos.embedding import (
    choose_num_points,
    compare_neighbors,
    place_points,
    reduce_features,
)
from finetune.commands.report.photos.sprite_sheet import (
    MAX_LETTERS,
    choose_side,
    draw_sprite_sheet,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page


def draw_clusters(num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features of three far clusters, and the cluster of each."""
    random = np.random.default_rng(0)
    labels = np.arange(num_points) % 3
    centers = 20 * random.normal(size=(3, 64))
    features = centers[labels] + random.normal(size=(num_points, 64))
    return features.astype(np.float32), labels


def test_embedding_separates_clusters_and_is_always_the_same() -> None:
    features, labels = draw_clusters(60)
    components = reduce_features(features)
    assert components.shape == (60, 50)
    places = place_points(components)
    np.testing.assert_array_equal(places, place_points(components))
    assert places.min() >= 0
    assert places.max() <= 1
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 10 * np.eye(60)
    assert (labels[distances.argmin(axis=1)] == labels).all()


def test_embedding_survives_equal_and_infinite_features() -> None:
    features = np.ones((20, 8), np.float32)
    assert np.isfinite(place_points(reduce_features(features))).all()
    features[3] = np.inf
    assert np.isfinite(place_points(reduce_features(features))).all()


def test_neighbors_count_no_more_images_than_a_class_has() -> None:
    components = np.array([[0], [1], [2], [10], [11], [12], [13], [14], [50]], np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0])
    counted = np.ones(9, bool)
    counted[8] = False
    blue, red = sorted(
        compare_neighbors(components, labels, ("red", "blue"), counted), key=lambda one: one.name
    )
    # red has three other images, of which two are nearest; blue is complete
    assert (red.name, red.num_images) == ("red", 3)
    assert red.same_fraction == pytest.approx(2 / 3)
    assert red.other == "blue"
    assert red.other_fraction == pytest.approx(1 / 3)
    assert (blue.same_fraction, blue.other) == (1.0, "")


def test_fewer_points_are_placed_in_less_time() -> None:
    components = np.random.default_rng(0).normal(size=(5000, 10)).astype(np.float32)
    assert choose_num_points(components, 1e6) == 5000
    assert choose_num_points(components[:300], 1e-3) == 0


@pytest.mark.runs
def test_sprite_sheet_of_thousands_of_noisy_thumbnails_is_small() -> None:
    side = choose_side(1500)
    noise = np.random.default_rng(0).integers(0, 255, (50, side, side, 3), np.uint8)
    pictures = [Image.fromarray(noise[number % 50]) for number in range(1500)]
    sheet = draw_sprite_sheet(pictures)
    assert (sheet.side_px, sheet.num_columns) == (side, 39)
    assert len(sheet.uri) < 2 * MAX_LETTERS


def test_map_is_explored_by_pointer_and_by_keyboard(
    full_run: Path, page_file: Path, open_page: "Callable[..., Page]"
) -> None:
    page = open_page(page_file)
    text = page_file.read_text(encoding="utf-8")
    found = re.search(r'id="feature-map-data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    counts = read_facts(full_run).num_images
    assert len(data["x"]) == len(data["paths"]) == counts["train"] + counts["test"]
    assert sum(data["training"]) == counts["train"]
    canvas, tip = page.locator("#feature-map-canvas"), page.locator("#feature-map-tip")
    assert not tip.is_visible()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert tip.is_visible()
    first = tip.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert tip.inner_text() != first
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    if 1 in data["wrong"]:
        page.keyboard.press("Enter")
        assert "Predicted" in tip.inner_text()
    page.locator("#feature-map-select").select_option("0")
    assert not tip.is_visible()
    assert page.locator("#feature_map table tbody tr").count() > 0
