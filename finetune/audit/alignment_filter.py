"""Filters that align candidate pairs of images and keep those that match."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet
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
from finetune.data.images.validate import map_in_threads
from finetune.types import ReadOptions

Rows = NDArray[np.int64]

_DECODED_SIDE = 64
"""Side in pixels at which files are decoded again."""

_MAX_BRIGHTNESS_RATIO = 1.6
"""Largest ratio of the mean brightness of copies: of one that is 20% brighter to one that is 20%
darker it is 1.5."""
_BLACK_LEVEL = 4.0
"""Grey levels that are added to both, so that noise does not separate copies that are black."""

_CHUNK_SIZE = 2048
_FILE_CHUNK_SIZE = 128


class UnionFind:
    """Disjoint groups of image rows; a row that was never merged is a group of its own.

    It spares ``merge_matches`` the pairs whose images are already connected: among 570 photos with
    two sets of 61 near-duplicates it aligned 371 pairs instead of 1,492, in half of the time.
    """

    def __init__(self) -> None:
        self._sets = DisjointSet()

    def merge(self, one: int, other: int) -> bool:
        """Merge the groups of two rows; return whether they were separate.

        Args:
            one: A row.
            other: A row.
        """
        self._sets.add(one)
        self._sets.add(other)
        return bool(self._sets.merge(one, other))

    def find_spanning_forest(self, pairs: Rows) -> list[int]:
        """Return the indices of the pairs (P, 2) that form a spanning forest over the groups."""
        forest = UnionFind()
        return [
            index
            for index, (one, other) in enumerate(pairs.tolist())
            if forest.merge(self._find_root(one), self._find_root(other))
        ]

    def list_groups(self) -> list[list[int]]:
        """Return the rows of each group of two or more, ascending."""
        return [sorted(group) for group in self._sets.subsets()]

    def _find_root(self, row: int) -> int:
        try:
            return int(self._sets[row])
        except KeyError:  # a row that was never merged
            return row


@dataclass(frozen=True, slots=True)
class FilterStage:
    """One stage of alignment and the largest difference of the pairs that pass it.

    Attributes:
        side: Side of the images in pixels.
        steps: Number of steps of the alignment.
        max_difference: Largest difference of a match, between images of 64 pixels a side or more.
        bounds: Bounds of the alignment.
    """

    side: int
    steps: int
    max_difference: float
    bounds: AlignmentBounds = DEFAULT_BOUNDS


class AlignedPairs(NamedTuple):
    """Pairs of images with the transform that aligns the second with the first.

    Attributes:
        pairs: Rows of the images, shape (P, 2).
        orientations: Orientation of the second image, see ``apply_orientation``, shape (P,).
        warp: Scales and shifts, see ``Alignment``, shape (P, 4).
    """

    pairs: Rows
    orientations: Rows
    warp: Array

    def select(self, indices: Rows) -> "AlignedPairs":
        """Return the pairs at the given indices."""
        return AlignedPairs(self.pairs[indices], self.orientations[indices], self.warp[indices])


def concatenate_pairs(chunks: Sequence[AlignedPairs]) -> AlignedPairs:
    """Return the pairs of all chunks; P is 0 if there is no chunk."""
    empty = AlignedPairs(
        np.empty((0, 2), np.int64), np.empty(0, np.int64), np.empty((0, 4), np.float32)
    )
    return AlignedPairs(*(np.concatenate(column) for column in zip(empty, *chunks, strict=True)))


def iter_thumbnail_pairs(
    fingerprints: FingerprintTable, pairs: Rows
) -> Iterator[tuple[Rows, Array, Array]]:
    """Yield chunks of pairs with the thumbnails (n, S, S) of their first and second images."""
    for chunk in iter_chunks(pairs):
        yield (
            chunk,
            fingerprints.read_thumbnails(chunk[:, 0]),
            fingerprints.read_thumbnails(chunk[:, 1]),
        )


def is_similarly_bright(images: Array, others: Array) -> NDArray[np.bool_]:
    """Return which pairs differ in brightness by no more than copies do, shape (P,).

    The alignment ignores brightness; but images of half the brightness may be of another class.

    Args:
        images: First image of each pair, grey levels in [0, 255], shape (P, S, S).
        others: Second image of each pair, of the same shape.
    """
    means = (part.mean(axis=(1, 2)) + _BLACK_LEVEL for part in (images, others))
    one, other = means
    similar: NDArray[np.bool_] = np.maximum(one, other) <= _MAX_BRIGHTNESS_RATIO * np.minimum(
        one, other
    )
    return similar


def realign(
    stage: FilterStage, aligned: AlignedPairs, images: Array, others: Array
) -> tuple[AlignedPairs, Array]:
    """Refine the warp of pairs; return them with the remaining difference, shape (P,).

    Args:
        stage: Steps and bounds of the alignment.
        aligned: P pairs with their initial warp.
        images: First image of each pair, shape (P, S, S).
        others: Second image of each pair in its stored orientation, shape (P, S, S).
    """
    others = _apply_each_orientation(others, aligned.orientations)
    result = align(
        images, others, steps=stage.steps, bounds=stage.bounds, initial_warp=aligned.warp
    )
    return aligned._replace(warp=result.warp), result.difference


def find_matches(
    fingerprints: FingerprintTable, stage: FilterStage, aligned: AlignedPairs, difference: Array
) -> Rows:
    """Return the indices of the pairs that pass a stage.

    An alignment has six unknowns, so the fewer pixels the smaller image has, the less an agreement
    proves: the limit falls with the square of its shorter side below 64 pixels.

    Args:
        fingerprints: Fingerprints of all images.
        stage: Largest difference of a match.
        aligned: P pairs.
        difference: Differences as returned by ``realign``, shape (P,).
    """
    sides = (
        fingerprints.compute_shorter_sides(aligned.pairs.ravel())
        .reshape(aligned.pairs.shape)
        .min(axis=1)
    )
    limit_factor = np.square(np.minimum(1, sides / _DECODED_SIDE))
    return np.flatnonzero(difference < stage.max_difference * limit_factor)


def merge_matches(
    union_find: UnionFind,
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    candidates: AlignedPairs,
    stage: FilterStage,
) -> None:
    """Merge the images of the pairs that also match when their files are decoded again.

    Pairs whose images are connected by now are not aligned.

    Args:
        union_find: Groups so far; matches are merged into it.
        fingerprints: Fingerprints of N images.
        paths: Their files, shape (N,).
        candidates: Pairs whose thumbnails match.
        stage: Filter of images of 64 pixels a side.

    Raises:
        DataError: A file has changed since its fingerprint was computed.
    """
    remaining = np.arange(len(candidates.pairs))
    while chosen := union_find.find_spanning_forest(candidates.pairs[remaining]):
        for first in range(0, len(chosen), _FILE_CHUNK_SIZE):
            chunk = candidates.select(remaining[chosen[first : first + _FILE_CHUNK_SIZE]])
            for one, other in _find_file_matches(fingerprints, paths, chunk, stage).tolist():
                union_find.merge(one, other)
        remaining = np.delete(remaining, chosen)


def downsample(images: Array, side: int) -> Array:
    """Return images (P, S, S) averaged over S / side pixels, shape (P, side, side)."""
    size = images.shape[1] // side
    means: Array = images.reshape(len(images), side, size, side, size).mean(axis=(2, 4))
    return means


def iter_chunks(rows: Rows) -> Iterator[Rows]:
    """Yield rows, or pairs of rows, in chunks of at most 2048."""
    for first in range(0, len(rows), _CHUNK_SIZE):
        yield rows[first : first + _CHUNK_SIZE]


def _find_file_matches(
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    candidates: AlignedPairs,
    stage: FilterStage,
) -> Rows:
    """Return the pairs (M, 2) of the candidates that match when decoded at 64 pixels a side."""
    rows, inverse = np.unique(candidates.pairs, return_inverse=True)
    files = [paths[row] for row in rows.tolist()]
    decode = partial(_decode_smoothed, options=fingerprints.options)
    images = np.stack(list(map_in_threads(decode, files)))[inverse.reshape(candidates.pairs.shape)]
    aligned, difference = realign(stage, candidates, images[:, 0], images[:, 1])
    return aligned.pairs[find_matches(fingerprints, stage, aligned, difference)]


def _decode_smoothed(path: Path, *, options: ReadOptions) -> Array:
    grey = decode_greyscale(path, _DECODED_SIDE, options=options)
    pixels: Array = gaussian_filter(grey, 0.8)
    return pixels


def _apply_each_orientation(images: Array, orientations: Rows) -> Array:
    """Return images (P, S, S), each in its own orientation."""
    result = np.empty_like(images)
    for orientation in np.unique(orientations).tolist():
        is_chosen = orientations == orientation
        result[is_chosen] = apply_orientation(images[is_chosen], orientation)
    return result
