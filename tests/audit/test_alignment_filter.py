"""Pairs laid on one another keep where they lie; a sieve lets pass what is alike there."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.audit.alignment_filter import (
    AlignedPairs,
    FilterStage,
    concatenate_pairs,
    downsample,
    find_matches,
    iter_chunks,
    iter_thumbnail_pairs,
    merge_matches,
    realign,
)
from finetune.audit.image_alignment import AlignmentBounds, build_identity_warp
from finetune.audit.union_find import UnionFind
from tests.audit.test_near_duplicates import looked_at
from tests.support.pictures import scene, write_jpeg


def laid(*pairs: tuple[int, int], turn: int = 0) -> AlignedPairs:
    return AlignedPairs(np.array(pairs), np.full(len(pairs), turn), build_identity_warp(len(pairs)))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Return a photo, its mirror image at half the size, another one, and one of 16 pixels."""
    photo = scene(0, width=256, height=256)
    mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((128, 128))
    images = [photo, mirrored, scene(1, width=256, height=256), photo.resize((16, 16))]
    return [write_jpeg(tmp_path / f"{n}.jpg", image) for n, image in enumerate(images)]


def test_a_turn_is_undone_before_images_are_compared(paths: list[Path]) -> None:
    looks = looked_at(paths)
    sieve = FilterStage(32, steps=2, max_difference=0.1)
    for turn, passes in ((1, [0]), (0, [])):
        ((pairs, *thumbnails),) = iter_thumbnail_pairs(looks, np.array([[0, 1], [0, 2]]))
        found, difference = realign(sieve, laid((0, 1), (0, 2), turn=turn), *thumbnails)
        np.testing.assert_array_equal(found.pairs, pairs)
        assert find_matches(looks, sieve, found, difference).tolist() == passes


def test_a_small_image_has_to_be_more_alike(paths: list[Path]) -> None:
    looks, sieve = looked_at(paths), FilterStage(32, steps=1, max_difference=0.16)
    difference = np.full(2, 0.02, np.float32)
    assert find_matches(looks, sieve, laid((0, 2), (0, 3)), difference).tolist() == [0]
    # (16 / 64)^2 of what may differ between larger ones
    assert find_matches(looks, sieve, laid((0, 3)), difference[:1] / 2.5).tolist() == [0]


def test_no_placing_goes_beyond_the_reach(paths: list[Path]) -> None:
    looks = looked_at(paths)
    ((_, *thumbnails),) = iter_thumbnail_pairs(looks, np.array([[0, 2]]))
    near = FilterStage(
        32, steps=8, max_difference=1, bounds=AlignmentBounds(max_scale=1.01, max_shift=0.02)
    )
    found, _ = realign(near, laid((0, 2)), *thumbnails)
    assert (np.abs(found.warp - build_identity_warp(1)) <= 0.0201).all()


def test_what_is_alike_in_the_files_is_joined(paths: list[Path]) -> None:
    looks, joined = looked_at(paths), UnionFind()
    likely = concatenate_pairs([laid((0, 1), turn=1), laid((0, 2)), laid((1, 2))])
    merge_matches(joined, looks, paths, likely, FilterStage(64, steps=4, max_difference=0.08))
    assert joined.list_groups() == [[0, 1]]


def test_nothing_is_laid_on_nothing() -> None:
    none = concatenate_pairs([])
    assert [part.shape for part in none] == [(0, 2), (0,), (0, 4)]
    assert list(iter_chunks(none.pairs)) == []


def test_shrinking_takes_means() -> None:
    images = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    np.testing.assert_array_equal(downsample(images, 2)[0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(downsample(images, 4), images)
