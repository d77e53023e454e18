"""Pairs of images laid on one another, of which sieves keep those that are alike there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from finetune.audit.fingerprint import decode_greyscale
from finetune.audit.fingerprint_table import FingerprintTable
from finetune.audit.image_alignment import (
    DEFAULT_BOUNDS,
    AlignmentBounds,
    Array,
    align,
    apply_orientation,
)
from finetune.audit.union_find import Rows, UnionFind
from finetune.data.images.validate import map_in_threads

_DECODED_SIDE = 64
"""A side of what is decoded again."""

_CHUNK = 2048
_FILE_CHUNK = 128


@dataclass(frozen=True, slots=True)
class FilterStage:
    """One way to lay images on one another, and what may differ then.

    Attributes:
        side: Pixels a side.
        steps: Of the alignment.
        max_difference: The largest, between images of 64 pixels a side or more.
        bounds: Of the alignment.
    """

    side: int
    steps: int
    max_difference: float
    bounds: AlignmentBounds = DEFAULT_BOUNDS


class AlignedPairs(NamedTuple):
    """Pairs of images on one another.

    Attributes:
        pairs: Their rows, shape (P, 2).
        orientations: How the second is turned, shape (P,).
        warp: See ``Alignment``, shape (P, 4).
    """

    pairs: Rows
    orientations: Rows
    warp: Array

    def select(self, indices: Rows) -> "AlignedPairs":
        """Return some of them."""
        return AlignedPairs(self.pairs[indices], self.orientations[indices], self.warp[indices])


def concatenate_pairs(chunks: Sequence[AlignedPairs]) -> AlignedPairs:
    """Return the pairs of all parts; of none, where there is no part."""
    none = AlignedPairs(
        np.empty((0, 2), np.int64), np.empty(0, np.int64), np.empty((0, 4), np.float32)
    )
    return AlignedPairs(*(np.concatenate(column) for column in zip(none, *chunks, strict=True)))


def iter_thumbnail_pairs(
    fingerprints: FingerprintTable, pairs: Rows
) -> Iterator[tuple[Rows, Array, Array]]:
    """Yield some pairs at a time, with the thumbnails (n, S, S) of their images."""
    for some in iter_chunks(pairs):
        yield (
            some,
            fingerprints.read_thumbnails(some[:, 0]),
            fingerprints.read_thumbnails(some[:, 1]),
        )


def realign(
    stage: FilterStage, aligned: AlignedPairs, images: Array, others: Array
) -> tuple[AlignedPairs, Array]:
    """Return pairs as a sieve's alignment lays them, and what differs then, shape (P,).

    Args:
        stage: Says how.
        aligned: P pairs, where to begin.
        images: The first of each, shape (P, S, S).
        others: The second of each, not turned yet, shape (P, S, S).
    """
    others = _apply_each_orientation(others, aligned.orientations)
    found = align(images, others, steps=stage.steps, bounds=stage.bounds, initial_warp=aligned.warp)
    return aligned._replace(warp=found.warp), found.difference


def find_matches(
    fingerprints: FingerprintTable, stage: FilterStage, aligned: AlignedPairs, difference: Array
) -> Rows:
    """Return which pairs pass a sieve.

    An alignment has six unknowns. The fewer pixels there are, the less it proves if they agree.

    Args:
        fingerprints: At all images.
        stage: Says what is alike.
        aligned: P pairs.
        difference: See ``realign``.
    """
    sides = (
        fingerprints.compute_shorter_sides(aligned.pairs.ravel())
        .reshape(aligned.pairs.shape)
        .min(axis=1)
    )
    meaning = np.square(np.minimum(1, sides / _DECODED_SIDE))
    return np.flatnonzero(difference < stage.max_difference * meaning)


def merge_matches(
    union_find: UnionFind,
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    candidates: AlignedPairs,
    stage: FilterStage,
) -> None:
    """Join the images of the pairs that are alike in their files, too.

    Of the pairs that would join the same images only one is looked at, as long as it passes.

    Args:
        union_find: What is joined already, and will be.
        fingerprints: At N images.
        paths: Their files, shape (N,).
        candidates: Pairs that their thumbnails do not tell apart.
        stage: For images of 64 pixels a side.

    Raises:
        DataError: A file has changed since it was looked at.
    """
    left = np.arange(len(candidates.pairs))
    while chosen := union_find.find_spanning_forest(candidates.pairs[left]):
        for first in range(0, len(chosen), _FILE_CHUNK):
            tried = candidates.select(left[chosen[first : first + _FILE_CHUNK]])
            for one, other in _find_file_matches(fingerprints, paths, tried, stage).tolist():
                union_find.merge(one, other)
        left = np.delete(left, chosen)


def downsample(images: Array, side: int) -> Array:
    """Return images (P, S, S) as means over S / side pixels, shape (P, side, side)."""
    size = images.shape[1] // side
    means: Array = images.reshape(len(images), side, size, side, size).mean(axis=(2, 4))
    return means


def iter_chunks(rows: Rows) -> Iterator[Rows]:
    """Yield rows, or pairs of them, not too many at a time."""
    for first in range(0, len(rows), _CHUNK):
        yield rows[first : first + _CHUNK]


def _find_file_matches(
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    candidates: AlignedPairs,
    stage: FilterStage,
) -> Rows:
    rows, places = np.unique(candidates.pairs, return_inverse=True)
    files = [paths[row] for row in rows.tolist()]
    images = np.stack(list(map_in_threads(_decode_smoothed, files)))[
        places.reshape(candidates.pairs.shape)
    ]
    laid, difference = realign(stage, candidates, images[:, 0], images[:, 1])
    return laid.pairs[find_matches(fingerprints, stage, laid, difference)]


def _decode_smoothed(path: Path) -> Array:
    pixels: Array = gaussian_filter(decode_greyscale(path, _DECODED_SIDE), 0.8)
    return pixels


def _apply_each_orientation(images: Array, orientations: Rows) -> Array:
    """Return images (P, S, S), each turned in its own way."""
    result = np.empty_like(images)
    for turn in np.unique(orientations).tolist():
        result[orientations == turn] = apply_orientation(images[orientations == turn], turn)
    return result
