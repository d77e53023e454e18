"""Filters align candidate pairs and keep the matches; union-find joins them into groups."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.audit import alignment_filter as module
from finetune.audit.alignment_filter import (
    AlignedPairs,
    FilterStage,
    UnionFind,
    concatenate_pairs,
    downsample,
    find_matches,
    iter_chunks,
    iter_thumbnail_pairs,
    merge_matches,
    realign,
)
from finetune.audit.image_alignment import AlignmentBounds, Array, build_identity_warp
from tests.audit.test_near_duplicates import fingerprint
from tests.support.pictures import create_scene, write_jpeg


def unaligned(*pairs: tuple[int, int], orientation: int = 0) -> AlignedPairs:
    orientations = np.full(len(pairs), orientation)
    return AlignedPairs(np.array(pairs), orientations, build_identity_warp(len(pairs)))


def test_union_find_merge_returns_whether_rows_were_separate() -> None:
    union_find = UnionFind()
    assert union_find.merge(7, 2)
    assert union_find.merge(2, 9)
    assert not union_find.merge(9, 7)
    assert union_find.merge(0, 1)
    assert sorted(union_find.list_groups()) == [[0, 1], [2, 7, 9]]


def test_union_find_spanning_forest_skips_connected_pairs() -> None:
    union_find = UnionFind()
    union_find.merge(0, 1)
    pairs = np.array([[0, 1], [1, 2], [0, 2], [3, 4], [2, 3], [4, 1]])
    assert union_find.find_spanning_forest(pairs) == [1, 3, 4]
    assert union_find.list_groups() == [[0, 1]], "the search merges nothing"
    assert union_find.find_spanning_forest(np.empty((0, 2), np.int64)) == []


def test_merge_matches_aligns_no_pair_that_is_connected(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_aligned: list[int] = []

    def count(stage: FilterStage, aligned: AlignedPairs, *images: Array) -> Any:
        num_aligned.append(len(aligned.pairs))
        return realign(stage, aligned, *images)

    monkeypatch.setattr(module, "realign", count)
    equal, union_find = [paths[0]] * 3, UnionFind()
    triangle = unaligned((0, 1), (0, 2), (1, 2))
    stage = FilterStage(64, steps=4, max_difference=0.08)
    merge_matches(union_find, fingerprint(equal), equal, triangle, stage)
    assert union_find.list_groups() == [[0, 1, 2]]
    assert sum(num_aligned) == 2


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Return a photo, its flip at half the size, another photo, and the first at 16 pixels."""
    photo = create_scene(0, width=256, height=256)
    flipped = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((128, 128))
    images = [photo, flipped, create_scene(1, width=256, height=256), photo.resize((16, 16))]
    return [write_jpeg(tmp_path / f"{n}.jpg", image) for n, image in enumerate(images)]


def test_realign_flipped_image_matches_only_in_its_orientation(paths: list[Path]) -> None:
    table = fingerprint(paths)
    stage = FilterStage(32, steps=2, max_difference=0.1)
    for orientation, passes in ((1, [0]), (0, [])):
        ((pairs, *thumbnails),) = iter_thumbnail_pairs(table, np.array([[0, 1], [0, 2]]))
        found, difference = realign(
            stage, unaligned((0, 1), (0, 2), orientation=orientation), *thumbnails
        )
        np.testing.assert_array_equal(found.pairs, pairs)
        assert find_matches(table, stage, found, difference).tolist() == passes


def test_find_matches_small_image_has_lower_limit(paths: list[Path]) -> None:
    table, stage = fingerprint(paths), FilterStage(32, steps=1, max_difference=0.16)
    difference = np.full(2, 0.02, np.float32)
    assert find_matches(table, stage, unaligned((0, 2), (0, 3)), difference).tolist() == [0]
    # (16 / 64)^2 of what may differ between larger ones
    assert find_matches(table, stage, unaligned((0, 3)), difference[:1] / 2.5).tolist() == [0]


def test_realign_narrow_bounds_are_kept(paths: list[Path]) -> None:
    table = fingerprint(paths)
    ((_, *thumbnails),) = iter_thumbnail_pairs(table, np.array([[0, 2]]))
    near = FilterStage(
        32, steps=8, max_difference=1, bounds=AlignmentBounds(max_scale=1.01, max_shift=0.02)
    )
    found, _ = realign(near, unaligned((0, 2)), *thumbnails)
    assert (np.abs(found.warp - build_identity_warp(1)) <= 0.0201).all()


def test_merge_matches_joins_pairs_that_match_in_their_files(paths: list[Path]) -> None:
    table, union_find = fingerprint(paths), UnionFind()
    candidates = concatenate_pairs(
        [unaligned((0, 1), orientation=1), unaligned((0, 2)), unaligned((1, 2))]
    )
    merge_matches(
        union_find, table, paths, candidates, FilterStage(64, steps=4, max_difference=0.08)
    )
    assert union_find.list_groups() == [[0, 1]]


def test_concatenate_pairs_without_chunks_is_empty() -> None:
    none = concatenate_pairs([])
    assert [part.shape for part in none] == [(0, 2), (0,), (0, 4)]
    assert list(iter_chunks(none.pairs)) == []


def test_downsample_takes_means() -> None:
    images = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    np.testing.assert_array_equal(downsample(images, 2)[0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(downsample(images, 4), images)
