"""Copies are looked for once, as long as the images stay as they are."""

import gc
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.audit import duplicate_cache as module
from finetune.audit.cropped_duplicates import find_crops
from finetune.audit.duplicate_cache import know_copies, known_copies, known_crops
from finetune.audit.fingerprint_table import Looks, look_at_files
from finetune.audit.near_duplicates import Copies, find_copies
from finetune.data.cache.eviction import make_room
from finetune.types import Reporter, Sample
from tests.pictures import scene, write_jpeg


def seen(root: Path, cache: Path) -> tuple[Looks, list[Path]]:
    paths = sorted(root.glob("*.jpg"))
    samples = [Sample(path.name, "x") for path in paths]
    good, looks, _ = look_at_files(
        root, samples, max_pixels=10**6, stores=cache, limit_bytes=10**8, reporter=Reporter()
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

    def counted(looks: Looks, paths: Sequence[Path], **more: object) -> list[Copies]:
        made.append(len(looks))
        return find_copies(looks, paths, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "find_copies", counted)
    return made


def test_the_same_images_are_searched_once(
    photos: Path, tmp_path: Path, searches: list[int]
) -> None:
    first = known_copies(*seen(photos, tmp_path / "cache"))
    assert [copies.rows for copies in first] == [(2, 4)]
    steps: list[int] = []
    again = known_copies(*seen(photos, tmp_path / "cache"), on_searched=steps.append)
    assert again == first
    assert searches == [5]
    assert sum(steps) == 5


def test_a_new_or_changed_image_is_searched_for(
    photos: Path, tmp_path: Path, searches: list[int]
) -> None:
    known_copies(*seen(photos, tmp_path / "cache"))
    write_jpeg(photos / "0.jpg", scene(9))
    known_copies(*seen(photos, tmp_path / "cache"))
    shutil.copyfile(photos / "0.jpg", photos / "9.jpg")
    found = known_copies(*seen(photos, tmp_path / "cache"))
    assert [(copies.rows, copies.exact) for copies in found] == [((0, 4), True), ((2, 5), False)]
    assert searches == [5, 5, 6]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"of": 3}'])
def test_what_is_damaged_is_made_anew(
    photos: Path, tmp_path: Path, searches: list[int], text: str
) -> None:
    looks, paths = seen(photos, tmp_path / "cache")
    first = known_copies(looks, paths)
    (looks.folder / "copies.json").write_text(text)
    assert known_copies(looks, paths) == first
    assert known_copies(looks, paths) == first
    assert searches == [5, 5]


def test_what_was_told_is_known_until_an_image_changes(
    photos: Path, tmp_path: Path, searches: list[int]
) -> None:
    told = [Copies((0, 1, 3), exact=False)]
    know_copies(seen(photos, tmp_path / "cache")[0], told)
    assert known_copies(*seen(photos, tmp_path / "cache")) == told
    assert searches == []
    write_jpeg(photos / "0.jpg", scene(9))
    assert [one.rows for one in known_copies(*seen(photos, tmp_path / "cache"))] == [(2, 4)]


def test_crops_are_looked_for_once_by_each_backbone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(looks: Looks, *others: Any, **more: Any) -> list[Copies]:
        made.append(len(looks))
        return find_crops(looks, *others, **more)

    monkeypatch.setattr(module, "find_crops", counted)
    features = [np.ones((5, 8), np.float32)]

    def crops(known: list[Copies], made_by: str) -> list[Copies]:
        looks, paths = seen(photos, tmp_path / "cache")
        return known_crops(looks, paths, known, features, made_by=made_by)

    known = known_copies(*seen(photos, tmp_path / "cache"))
    assert crops(known, "one") == crops(known, "one") == known
    assert made == [5]
    crops(known, "other")
    more = [Copies((0, 2, 4), exact=False)]
    assert crops(more, "one") == more, "what is known meanwhile is not lost"
    assert made == [5] * 3


def test_looks_make_room_with_all_that_was_found_in_them(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    looks, paths = seen(photos, cache)
    known_crops(
        looks, paths, known_copies(looks, paths), [np.ones((5, 8), np.float32)], made_by="head-0a"
    )
    folder = looks.folder
    assert {"copies.json", "crops-head-0a.json"} <= {file.name for file in folder.iterdir()}
    del looks  # in use, it stays
    gc.collect()
    assert make_room(cache, needed_bytes=0, limit_bytes=1)
    assert not folder.exists()
