"""Copies that are cut too much to be found by their whole picture, brought together by a backbone.

By up to 30% of width and height, upright or in a mirror (``scripts/benchmarks/copies.py``).

To a pretrained backbone a cutting of a photo is much like the photo. But so are other photos of
such things, and no cosine parts the two: among the nearest neighbours by their features, as copies
are elsewhere, those are found that can be laid on one another.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
from finetune.audit.fingerprint_table import FingerprintTable
from finetune.audit.image_alignment import AlignmentBounds, Array
from finetune.audit.near_duplicates import (
    DuplicateGroup,
    build_duplicate_groups,
    find_first_identical,
    select_comparable,
)
from finetune.audit.union_find import Rows, UnionFind

_MIN_COSINE = 0.85
_NUM_NEIGHBOURS = 5
_PROJECTION_DIM = 128
"""A projection to so many moves a cosine of 0.85 by 0.025 (standard deviation), larger ones less
(Johnson and Lindenstrauss 1984)."""

_CELL_SIZE = 8192
"""Images, about, among which the neighbours of one are looked for."""

_CELLS_PER_IMAGE = 2

_BOUNDS = AlignmentBounds(max_scale=1.6, max_shift=0.6)
_COARSE = FilterStage(16, steps=5, max_difference=0.5, bounds=_BOUNDS)
_MIDDLE = FilterStage(32, steps=6, max_difference=0.35, bounds=_BOUNDS)
_FINE = FilterStage(64, steps=4, max_difference=0.03, bounds=_BOUNDS)
"""Finer than for other copies: the farther an alignment may go, the more it can make alike."""

_INITIAL_ALIGNMENTS = tuple(product((1.0, 1.2, 1 / 1.2), (0, 1)))
"""Stretch, and turn: upright, or in a mirror."""

_CHUNK = 2048


class FeatureArray(Protocol):
    """What a backbone says of images, shape (N, D), read some rows at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """N, D."""

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Return some rows, shape (n, D)."""


def find_cropped_duplicates(
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    duplicates: Sequence[DuplicateGroup],
    features: Sequence[FeatureArray],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> list[DuplicateGroup]:
    """Return all groups of copies: those that are known, and what features add to them.

    Args:
        fingerprints: At N images.
        paths: Their files, shape (N,).
        duplicates: What ``find_duplicates`` has found in them.
        features: Of the same images, one part after the other.
        on_progress: Called with a count of images, as they are compared; N in all.

    Raises:
        DataError: A file has changed since it was looked at.
    """
    joined, first = UnionFind(), find_first_identical(fingerprints)
    # one of each group stands for it: among its own copies it would find nothing else
    stands_for = np.arange(len(fingerprints))
    for copies in duplicates:
        stands_for[list(copies.rows)] = copies.rows[0]
        for row in copies.rows[1:]:
            joined.merge(copies.rows[0], row)
    comparable = np.intersect1d(select_comparable(fingerprints, first), stands_for)
    advance = on_progress or (lambda count: None)
    advance(len(fingerprints) - len(comparable))
    pairs, done = _find_nearest_pairs(_project_features(features, comparable), comparable), 0
    for some in iter_chunks(pairs):
        merge_matches(joined, fingerprints, paths, _filter_by_thumbnails(fingerprints, some), _FINE)
        share = len(comparable) * len(some) // len(pairs)
        advance(share)
        done += share
    advance(len(comparable) - done)
    return build_duplicate_groups(joined, first)


def _project_features(features: Sequence[FeatureArray], rows: Rows) -> Array:
    """Return features of some images at length 1, in fewer dimensions, shape (n, d)."""
    width = features[0].shape[1]
    # the same in every run
    project = np.random.default_rng(0).standard_normal((width, _PROJECTION_DIM), np.float32)
    found = np.empty((len(rows), _PROJECTION_DIM), np.float32)
    before = 0
    for part in features:
        for first in range(0, part.shape[0], _CHUNK):
            ends = np.searchsorted(rows - before, (first, min(first + _CHUNK, part.shape[0])))
            chosen = rows[slice(*ends)] - before - first
            directions = part[first : first + _CHUNK][chosen] @ project
            length = np.linalg.norm(directions, axis=1, keepdims=True)
            found[slice(*ends)] = directions / np.maximum(length, 1e-12)
        before += part.shape[0]
    return found


def _find_nearest_pairs(projected: Array, rows: Rows) -> Rows:
    """Return pairs (P, 2) of images that point the same way, each pair once.

    Args:
        projected: Directions, shape (n, d).
        rows: Of the images, ascending, shape (n,).
    """
    from sklearn.neighbors import NearestNeighbors  # over a second

    found = [np.empty(0, np.int64)]
    for members in _iter_cells(projected):
        if len(members) < 2:
            continue
        most = min(_NUM_NEIGHBOURS, len(members) - 1)
        search = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(projected[members])
        distance, near = search.kneighbors()  # of each to the others
        one, which = np.nonzero(distance**2 <= 2 * (1 - _MIN_COSINE))
        less, more = np.sort(np.stack([members[one], members[near[one, which]]]), axis=0)
        found.append(less * len(rows) + more)
    # both may lie in two cells
    numbers = np.unique(np.concatenate(found))
    pairs: Rows = rows[np.stack(np.divmod(numbers, max(1, len(rows))), axis=1)]
    return pairs


def _iter_cells(projected: Array) -> Iterator[Rows]:
    """Yield rows of directions (n, d), each in the cells of the two nearest of some of them.

    There are so many cells that one holds about as many however many images there are.
    """
    count = -(-len(projected) // _CELL_SIZE)
    if count < 2:
        yield np.arange(len(projected))
        return
    centres = projected[np.linspace(0, len(projected) - 1, count).astype(np.int64)]
    nearest = np.empty((len(projected), _CELLS_PER_IMAGE), np.int32)
    for first in range(0, len(projected), _CHUNK):
        far = -projected[first : first + _CHUNK] @ centres.T
        order = np.argpartition(far, _CELLS_PER_IMAGE - 1, axis=1)
        nearest[first : first + _CHUNK] = order[:, :_CELLS_PER_IMAGE]
    for cell in range(count):
        yield np.flatnonzero((nearest == cell).any(axis=1))


def _filter_by_thumbnails(fingerprints: FingerprintTable, pairs: Rows) -> AlignedPairs:
    """Return the pairs whose thumbnails can be laid on one another, how turned, and where."""
    found = []
    for some, *thumbnails in iter_thumbnail_pairs(fingerprints, pairs):
        small = [downsample(part, _COARSE.side) for part in thumbnails]
        likely, least = _build_initial_pairs(some, 1.0, 0), np.full(len(some), np.inf, np.float32)
        for stretch, turn in _INITIAL_ALIGNMENTS:
            laid, difference = realign(_COARSE, _build_initial_pairs(some, stretch, turn), *small)
            better = difference < least
            least[better] = difference[better]
            likely.orientations[better], likely.warp[better] = turn, laid.warp[better]
        kept = find_matches(fingerprints, _COARSE, likely, least)
        images, others = (part[kept] for part in thumbnails)
        laid, difference = realign(_MIDDLE, likely.select(kept), images, others)
        found.append(laid.select(find_matches(fingerprints, _MIDDLE, laid, difference)))
    return concatenate_pairs(found)


def _build_initial_pairs(pairs: Rows, scale: float, orientation: int) -> AlignedPairs:
    placing = np.tile(np.array([scale, 0, scale, 0], np.float32), (len(pairs), 1))
    return AlignedPairs(pairs, np.full(len(pairs), orientation), placing)
