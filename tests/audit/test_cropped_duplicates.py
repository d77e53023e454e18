"""Crops too small for global descriptors are found through features."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from finetune.audit.cropped_duplicates import find_cropped_duplicates
from finetune.audit.near_duplicates import DuplicateGroup, find_duplicates
from tests.audit.test_near_duplicates import cropped, fingerprint
from tests.support.pictures import create_scene, write_jpeg

Array = NDArray[np.float32]


def write_all(folder: Path, images: Sequence[Image.Image]) -> list[Path]:
    return [write_jpeg(folder / f"{n:03}.jpg", image) for n, image in enumerate(images)]


def photo(seed: int) -> Image.Image:
    return create_scene(seed, width=320, height=240)


def crop(seed: int) -> Image.Image:
    """Return a crop of three quarters of a photo along each side."""
    return cropped(photo(seed), 0.05, 0.2, 0.2, 0.05)


def make_features(directions: Sequence[int], *, width: int = 40) -> Array:
    """Return one row for each image; equal numbers have almost the same direction."""
    random = np.random.default_rng(1)
    rows = [np.eye(width, dtype=np.float32)[number] for number in directions]
    return np.stack(rows) * 7 + random.normal(0, 0.1, (len(rows), width)).astype(np.float32)


def find_rows(paths: list[Path], *features: Array, cell_size: int = 8192) -> list[tuple[int, ...]]:
    table = fingerprint(paths)
    steps: list[int] = []
    known = find_duplicates(table, paths)
    groups = find_cropped_duplicates(
        table, paths, known, features, on_progress=steps.append, cell_size=cell_size
    )
    assert sum(steps) == len(paths)
    return [group.rows for group in groups]


def test_find_cropped_duplicates_similar_features_reveal_crops(tmp_path: Path) -> None:
    images = [photo(0), photo(1), photo(2), crop(1), ImageOps.mirror(crop(0))]
    paths = write_all(tmp_path, images)
    assert find_duplicates(fingerprint(paths), paths) == [], "the crops are found without features"
    assert find_rows(paths, make_features([0, 1, 2, 1, 0])) == [(0, 4), (1, 3)]
    assert find_rows(paths, make_features([0, 1, 2, 3, 4])) == [], "no features are similar"


def test_find_cropped_duplicates_other_photos_with_equal_features_are_not_merged(
    tmp_path: Path,
) -> None:
    paths = write_all(tmp_path, [photo(seed) for seed in range(8)])
    assert find_rows(paths, make_features([0] * 8)) == []


def test_find_cropped_duplicates_features_in_several_arrays(tmp_path: Path) -> None:
    paths = write_all(tmp_path, [photo(0), photo(1), photo(2), crop(0), crop(2)])
    features = make_features([0, 1, 2, 0, 2])
    parts = features[:2], features[2:2], features[2:]
    assert find_rows(paths, *parts) == [(0, 3), (2, 4)]


def test_find_cropped_duplicates_known_groups_stay_and_grow(tmp_path: Path) -> None:
    same = [photo(3)] * 8  # more than the number of neighbours that are searched
    paths = write_all(tmp_path, [*same, photo(4), crop(3), photo(5)])
    table = fingerprint(paths)
    known = find_duplicates(table, paths)
    assert known == [DuplicateGroup(tuple(range(8)), is_exact=True)]
    found = find_cropped_duplicates(table, paths, known, [make_features([*([0] * 8), 1, 0, 2])])
    assert found == [DuplicateGroup((*range(8), 9), is_exact=False)]
    assert (
        find_cropped_duplicates(table, paths, known, [make_features([*([0] * 8), 1, 2, 3])])
        == known
    )


def test_find_cropped_duplicates_cells_find_the_pairs_of_a_full_search(tmp_path: Path) -> None:
    images = [image for seed in range(12) for image in (photo(seed), crop(seed))]
    paths = write_all(tmp_path, images)
    # on a circle: images far from all centres would be in cells at random
    angle = np.repeat(np.arange(12) * np.pi / 6, 2) + np.tile([0, 0.02], 12)
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    pairs = [(row, row + 1) for row in range(0, 24, 2)]
    assert find_rows(paths, features) == pairs
    assert find_rows(paths, features, cell_size=5) == pairs


@pytest.mark.parametrize("count", [1, 2])
def test_find_cropped_duplicates_few_or_blank_images_have_no_groups(
    tmp_path: Path, count: int
) -> None:
    blank = [Image.new("RGB", (64, 64 + number), "white") for number in range(4)]
    paths = write_all(tmp_path, [*blank, photo(1)][-count:])
    assert find_rows(paths, make_features([0] * count)) == []
    assert find_cropped_duplicates(fingerprint([]), [], [], [np.empty((0, 8), np.float32)]) == []
