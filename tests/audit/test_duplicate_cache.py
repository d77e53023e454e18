"""The duplicates of unchanged images are searched once."""

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
from finetune.types import ReadOptions, Reporter, Sample
from tests.support.pictures import create_scene, write_jpeg


def fingerprint(root: Path, cache: Path) -> tuple[FingerprintTable, list[Path]]:
    paths = sorted(root.glob("*.jpg"))
    samples = [Sample(path.name, "x") for path in paths]
    readable, table, _ = fingerprint_files(
        root,
        samples,
        options=ReadOptions(max_pixels=10**6),
        stores_dir=cache,
        limit_bytes=10**8,
        reporter=Reporter(),
    )
    assert len(readable) == len(paths)
    return table, paths


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        write_jpeg(folder / f"{number}.jpg", create_scene(number))
    write_jpeg(folder / "again.jpg", create_scene(2), quality=50)
    return folder


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the numbers of images of each search."""
    searches_made: list[int] = []

    def count(
        table: FingerprintTable, paths: Sequence[Path], **more: object
    ) -> list[DuplicateGroup]:
        searches_made.append(len(table))
        return find_duplicates(table, paths, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "find_duplicates", count)
    return searches_made


def test_load_or_find_duplicates_unchanged_images_are_searched_once(
    photos: Path, tmp_path: Path, searches: list[int]
) -> None:
    first = load_or_find_duplicates(*fingerprint(photos, tmp_path / "cache"))
    assert [group.rows for group in first] == [(2, 4)]
    steps: list[int] = []
    again = load_or_find_duplicates(
        *fingerprint(photos, tmp_path / "cache"), on_progress=steps.append
    )
    assert again == first
    assert searches == [5]
    assert sum(steps) == 5


def test_load_or_find_duplicates_new_or_changed_image_is_searched(
    photos: Path, tmp_path: Path, searches: list[int]
) -> None:
    load_or_find_duplicates(*fingerprint(photos, tmp_path / "cache"))
    write_jpeg(photos / "0.jpg", create_scene(9))
    load_or_find_duplicates(*fingerprint(photos, tmp_path / "cache"))
    shutil.copyfile(photos / "0.jpg", photos / "9.jpg")
    found = load_or_find_duplicates(*fingerprint(photos, tmp_path / "cache"))
    assert [(group.rows, group.is_exact) for group in found] == [((0, 4), True), ((2, 5), False)]
    assert searches == [5, 5, 6]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 3}', '{"of": 3}'])
def test_load_or_find_duplicates_damaged_cache_is_replaced(
    photos: Path, tmp_path: Path, searches: list[int], text: str
) -> None:
    table, paths = fingerprint(photos, tmp_path / "cache")
    first = load_or_find_duplicates(table, paths)
    (table.folder / "duplicates.json").write_text(text)
    assert load_or_find_duplicates(table, paths) == first
    assert load_or_find_duplicates(table, paths) == first
    assert searches == [5, 5]


def test_cache_duplicates_is_used_until_an_image_changes(
    photos: Path, tmp_path: Path, searches: list[int]
) -> None:
    stored = [DuplicateGroup((0, 1, 3), is_exact=False)]
    cache_duplicates(fingerprint(photos, tmp_path / "cache")[0], stored)
    assert load_or_find_duplicates(*fingerprint(photos, tmp_path / "cache")) == stored
    assert searches == []
    write_jpeg(photos / "0.jpg", create_scene(9))
    assert [
        one.rows for one in load_or_find_duplicates(*fingerprint(photos, tmp_path / "cache"))
    ] == [(2, 4)]


def test_load_or_find_cropped_duplicates_searches_once_per_cache_key(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches_made: list[int] = []

    def count(table: FingerprintTable, *others: Any, **more: Any) -> list[DuplicateGroup]:
        searches_made.append(len(table))
        return find_cropped_duplicates(table, *others, **more)

    monkeypatch.setattr(module, "find_cropped_duplicates", count)
    features = [np.ones((5, 8), np.float32)]

    def crops(known: list[DuplicateGroup], cache_key: str) -> list[DuplicateGroup]:
        table, paths = fingerprint(photos, tmp_path / "cache")
        return load_or_find_cropped_duplicates(table, paths, known, features, cache_key=cache_key)

    known = load_or_find_duplicates(*fingerprint(photos, tmp_path / "cache"))
    assert crops(known, "one") == crops(known, "one") == known
    assert searches_made == [5]
    crops(known, "other")
    more = [DuplicateGroup((0, 2, 4), is_exact=False)]
    assert crops(more, "one") == more, "groups found since are kept"
    assert searches_made == [5] * 3


def test_evict_to_fit_removes_fingerprints_with_their_duplicates(
    photos: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    table, paths = fingerprint(photos, cache)
    load_or_find_cropped_duplicates(
        table,
        paths,
        load_or_find_duplicates(table, paths),
        [np.ones((5, 8), np.float32)],
        cache_key="head-0a",
    )
    folder = table.folder
    assert {"duplicates.json", "crops-head-0a.json"} <= {file.name for file in folder.iterdir()}
    del table  # its lock prevents eviction
    gc.collect()
    assert evict_to_fit(cache, needed_bytes=0, limit_bytes=1)
    assert not folder.exists()


def test_evict_to_fit_removes_stores_of_version_0_1(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    table, _ = fingerprint(photos, cache)
    folder = table.folder
    del table
    gc.collect()
    old = folder.rename(folder.with_name(folder.name.replace("fingerprints-2-", "looks-1-")))
    (old / "copies.json").write_text("{}")
    assert evict_to_fit(cache, needed_bytes=0, limit_bytes=1)
    assert not old.exists()
