"""Copies are looked for once, as long as the images stay as they are."""

import gc
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.audit import duplicate_cache as module
from finetune.audit.cropped_duplicates import find_cropped_duplicates
from finetune.audit.duplicate_cache import (
    cache_duplicates,
    load_or_find_cropped_duplicates,
    load_or_find_duplicates,
)
from finetune.audit.fingerprint_table import FingerprintTable, fingerprint_files
from finetune.audit.near_duplicates import DuplicateGroup, find_duplicates
from finetune.data.cache.eviction import evict_to_fit
from finetune.types import Reporter, Sample
from tests.support.pictures import scene, write_jpeg


def seen(root: Path, cache: Path) -> tuple[FingerprintTable, list[Path]]:
    paths = sorted(root.glob("*.jpg"))
    samples = [Sample(path.name, "x") for path in paths]
    good, looks, _ = fingerprint_files(
        root, samples, max_pixels=10**6, stores_dir=cache, limit_bytes=10**8, reporter=Reporter()
    )
    assert len(good) == len(paths)
    return looks, paths


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        write_jpeg(folder / f"{number}.jpg", scene(number))
    write_jpeg(folder / "again.jpg", scene(2), quality=50)
    return folder


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each search."""
    made: list[int] = []

    def counted(
        looks: FingerprintTable, paths: Sequence[Path], **more: object
    ) -> list[DuplicateGroup]:
        made.append(len(looks))
        return find_duplicates(looks, paths, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "find_duplicates", counted)
    return made


def test_the_same_images_are_searched_once(
    photos: Path, tmp_path: Path, searches: list[int]
) -> None:
    first = load_or_find_duplicates(*seen(photos, tmp_path / "cache"))
    assert [copies.rows for copies in first] == [(2, 4)]
    steps: list[int] = []
    again = load_or_find_duplicates(*seen(photos, tmp_path / "cache"), on_progress=steps.append)
    assert again == first
    assert searches == [5]
    assert sum(steps) == 5


def test_a_new_or_changed_image_is_searched_for(
    photos: Path, tmp_path: Path, searches: list[int]
) -> None:
    load_or_find_duplicates(*seen(photos, tmp_path / "cache"))
    write_jpeg(photos / "0.jpg", scene(9))
    load_or_find_duplicates(*seen(photos, tmp_path / "cache"))
    shutil.copyfile(photos / "0.jpg", photos / "9.jpg")
    found = load_or_find_duplicates(*seen(photos, tmp_path / "cache"))
    assert [(copies.rows, copies.is_exact) for copies in found] == [((0, 4), True), ((2, 5), False)]
    assert searches == [5, 5, 6]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"of": 3}'])
def test_what_is_damaged_is_made_anew(
    photos: Path, tmp_path: Path, searches: list[int], text: str
) -> None:
    looks, paths = seen(photos, tmp_path / "cache")
    first = load_or_find_duplicates(looks, paths)
    (looks.folder / "copies.json").write_text(text)
    assert load_or_find_duplicates(looks, paths) == first
    assert load_or_find_duplicates(looks, paths) == first
    assert searches == [5, 5]


def test_what_was_told_is_known_until_an_image_changes(
    photos: Path, tmp_path: Path, searches: list[int]
) -> None:
    told = [DuplicateGroup((0, 1, 3), is_exact=False)]
    cache_duplicates(seen(photos, tmp_path / "cache")[0], told)
    assert load_or_find_duplicates(*seen(photos, tmp_path / "cache")) == told
    assert searches == []
    write_jpeg(photos / "0.jpg", scene(9))
    assert [one.rows for one in load_or_find_duplicates(*seen(photos, tmp_path / "cache"))] == [
        (2, 4)
    ]


def test_crops_are_looked_for_once_by_each_backbone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(looks: FingerprintTable, *others: Any, **more: Any) -> list[DuplicateGroup]:
        made.append(len(looks))
        return find_cropped_duplicates(looks, *others, **more)

    monkeypatch.setattr(module, "find_cropped_duplicates", counted)
    features = [np.ones((5, 8), np.float32)]

    def crops(known: list[DuplicateGroup], made_by: str) -> list[DuplicateGroup]:
        looks, paths = seen(photos, tmp_path / "cache")
        return load_or_find_cropped_duplicates(looks, paths, known, features, cache_key=made_by)

    known = load_or_find_duplicates(*seen(photos, tmp_path / "cache"))
    assert crops(known, "one") == crops(known, "one") == known
    assert made == [5]
    crops(known, "other")
    more = [DuplicateGroup((0, 2, 4), is_exact=False)]
    assert crops(more, "one") == more, "what is known meanwhile is not lost"
    assert made == [5] * 3


def test_looks_make_room_with_all_that_was_found_in_them(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    looks, paths = seen(photos, cache)
    load_or_find_cropped_duplicates(
        looks,
        paths,
        load_or_find_duplicates(looks, paths),
        [np.ones((5, 8), np.float32)],
        cache_key="head-0a",
    )
    folder = looks.folder
    assert {"copies.json", "crops-head-0a.json"} <= {file.name for file in folder.iterdir()}
    del looks  # in use, it stays
    gc.collect()
    assert evict_to_fit(cache, needed_bytes=0, limit_bytes=1)
    assert not folder.exists()
