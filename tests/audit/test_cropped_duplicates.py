"""Copies that are cut too much for any description of the whole are found through features."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from finetune.audit import cropped_duplicates as module
from finetune.audit.cropped_duplicates import find_cropped_duplicates
from finetune.audit.near_duplicates import DuplicateGroup, find_duplicates
from tests.audit.test_near_duplicates import cropped, looked_at
from tests.support.pictures import scene, write_jpeg

Array = NDArray[np.float32]


def written(folder: Path, images: Sequence[Image.Image]) -> list[Path]:
    return [write_jpeg(folder / f"{n:03}.jpg", image) for n, image in enumerate(images)]


def photo(seed: int) -> Image.Image:
    return scene(seed, width=320, height=240)


def cut(seed: int) -> Image.Image:
    """Return three quarters of a photo along each side."""
    return cropped(photo(seed), 0.05, 0.2, 0.2, 0.05)


def features_of(directions: Sequence[int], *, width: int = 40) -> Array:
    """Return one row for each image; those of the same number point almost the same way."""
    random = np.random.default_rng(1)
    rows = [np.eye(width, dtype=np.float32)[number] for number in directions]
    return np.stack(rows) * 7 + random.normal(0, 0.1, (len(rows), width)).astype(np.float32)


def found_in(paths: list[Path], *features: Array) -> list[tuple[int, ...]]:
    looks = looked_at(paths)
    told: list[int] = []
    known = find_duplicates(looks, paths)
    found = find_cropped_duplicates(looks, paths, known, features, on_progress=told.append)
    assert sum(told) == len(paths)
    return [copies.rows for copies in found]


def test_a_cutting_is_found_where_features_bring_it_to_its_photo(tmp_path: Path) -> None:
    images = [photo(0), photo(1), photo(2), cut(1), ImageOps.mirror(cut(0))]
    paths = written(tmp_path, images)
    assert find_duplicates(looked_at(paths), paths) == [], "else there would be nothing to add"
    assert found_in(paths, features_of([0, 1, 2, 1, 0])) == [(0, 4), (1, 3)]
    assert found_in(paths, features_of([0, 1, 2, 3, 4])) == [], "nothing brings them together"


def test_what_features_alone_take_for_the_same_is_not_joined(tmp_path: Path) -> None:
    paths = written(tmp_path, [photo(seed) for seed in range(8)])
    assert found_in(paths, features_of([0] * 8)) == []


def test_features_come_in_parts(tmp_path: Path) -> None:
    paths = written(tmp_path, [photo(0), photo(1), photo(2), cut(0), cut(2)])
    features = features_of([0, 1, 2, 0, 2])
    parts = features[:2], features[2:2], features[2:]
    assert found_in(paths, *parts) == [(0, 3), (2, 4)]


def test_known_groups_stay_and_grow(tmp_path: Path) -> None:
    same = [photo(3)] * 8  # as many as one image has neighbours, and more
    paths = written(tmp_path, [*same, photo(4), cut(3), photo(5)])
    looks = looked_at(paths)
    known = find_duplicates(looks, paths)
    assert known == [DuplicateGroup(tuple(range(8)), is_exact=True)]
    found = find_cropped_duplicates(looks, paths, known, [features_of([*([0] * 8), 1, 0, 2])])
    assert found == [DuplicateGroup((*range(8), 9), is_exact=False)]
    assert (
        find_cropped_duplicates(looks, paths, known, [features_of([*([0] * 8), 1, 2, 3])]) == known
    )


def test_cells_find_what_a_whole_search_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [image for seed in range(12) for image in (photo(seed), cut(seed))]
    paths = written(tmp_path, images)
    # all around, as images of a few kinds lie: what is far from all is in the cells of any
    angle = np.repeat(np.arange(12) * np.pi / 6, 2) + np.tile([0, 0.02], 12)
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    pairs = [(row, row + 1) for row in range(0, 24, 2)]
    assert found_in(paths, features) == pairs
    monkeypatch.setattr(module, "_CELL_SIZE", 5)
    assert found_in(paths, features) == pairs


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_and_blank_ones_are_compared_with_nothing(tmp_path: Path, count: int) -> None:
    blank = [Image.new("RGB", (64, 64 + number), "white") for number in range(4)]
    paths = written(tmp_path, [*blank, photo(1)][-count:])
    assert found_in(paths, features_of([0] * count)) == []
    assert find_cropped_duplicates(looked_at([]), [], [], [np.empty((0, 8), np.float32)]) == []
