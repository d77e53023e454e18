"""Cropped duplicates: crops too small for global descriptors, found by the features of a backbone.

Crops that remove up to 30% of width and height, upright or flipped
(``scripts/benchmarks/duplicates.py``).

A crop's features are close to its source's, but so are those of other photos of similar objects; no
cosine threshold separates them. The nearest neighbours by features are therefore verified by image
alignment, as other near-duplicates are.
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
    Rows,
    UnionFind,
    concatenate_pairs,
    downsample,
    find_matches,
    is_similarly_bright,
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

_MIN_COSINE = 0.85
_NUM_NEIGHBOURS = 5
_PROJECTION_DIM = 128
"""Dimension of the random projection; at 128 it changes a cosine of 0.85 by 0.025 (standard
deviation), larger ones by less (Johnson and Lindenstrauss 1984)."""

_CELL_SIZE = 8192
"""Approximate number of images within which neighbours are searched exhaustively."""

_CELLS_PER_IMAGE = 2

_BOUNDS = AlignmentBounds(max_scale=1.6, max_shift=0.6)
_COARSE = FilterStage(16, steps=5, max_difference=0.5, bounds=_BOUNDS)
_MIDDLE = FilterStage(32, steps=6, max_difference=0.35, bounds=_BOUNDS)
_FINE = FilterStage(64, steps=4, max_difference=0.03, bounds=_BOUNDS)
"""Stricter than for other near-duplicates: the wider the bounds, the more images can be aligned."""

_INITIAL_ALIGNMENTS = tuple(product((1.0, 1.2, 1 / 1.2), (0, 1)))
"""Scale and orientation: upright or flipped horizontally."""

_CHUNK_SIZE = 2048


class FeatureArray(Protocol):
    """Backbone features of images, shape (N, D), read in chunks of rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """N, D."""

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Return a chunk of rows, shape (n, D)."""


def find_cropped_duplicates(
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    duplicates: Sequence[DuplicateGroup],
    features: Sequence[FeatureArray],
    *,
    on_progress: Callable[[int], None] | None = None,
    cell_size: int = _CELL_SIZE,
) -> list[DuplicateGroup]:
    """Return all groups of duplicates: the known ones, extended by those that features reveal.

    Args:
        fingerprints: Fingerprints of N images.
        paths: Their files, shape (N,).
        duplicates: Result of ``find_duplicates`` for the same images.
        features: Features of the same images, as consecutive arrays of N rows in all.
        on_progress: Called with numbers of images as they are compared; they add up to N.
        cell_size: Approximate number of images within which neighbours are searched exhaustively.

    Raises:
        DataError: A file has changed since its fingerprint was computed.
    """
    union_find, first = UnionFind(), find_first_identical(fingerprints)
    # one image represents each group: it would find only its own duplicates otherwise
    representative = np.arange(len(fingerprints))
    for group in duplicates:
        representative[list(group.rows)] = group.rows[0]
        for row in group.rows[1:]:
            union_find.merge(group.rows[0], row)
    comparable = np.intersect1d(select_comparable(fingerprints, first), representative)
    advance = on_progress or (lambda count: None)
    advance(len(fingerprints) - len(comparable))
    projected = _project_features(features, comparable)
    pairs, num_compared = _find_nearest_pairs(projected, comparable, cell_size), 0
    for chunk in iter_chunks(pairs):
        merge_matches(
            union_find, fingerprints, paths, _filter_by_thumbnails(fingerprints, chunk), _FINE
        )
        count = len(comparable) * len(chunk) // len(pairs)
        advance(count)
        num_compared += count
    advance(len(comparable) - num_compared)
    return build_duplicate_groups(union_find, first)


def _project_features(features: Sequence[FeatureArray], rows: Rows) -> Array:
    """Return unit-length features of the given rows in fewer dimensions, shape (n, d)."""
    width = features[0].shape[1]
    # the same projection in every run
    projection = np.random.default_rng(0).standard_normal((width, _PROJECTION_DIM), np.float32)
    projected = np.empty((len(rows), _PROJECTION_DIM), np.float32)
    offset = 0
    for array in features:
        for first in range(0, array.shape[0], _CHUNK_SIZE):
            last = min(first + _CHUNK_SIZE, array.shape[0])
            ends = np.searchsorted(rows - offset, (first, last))
            chosen = rows[slice(*ends)] - offset - first
            directions = array[first : first + _CHUNK_SIZE][chosen] @ projection
            length = np.linalg.norm(directions, axis=1, keepdims=True)
            projected[slice(*ends)] = directions / np.maximum(length, 1e-12)
        offset += array.shape[0]
    return projected


def _find_nearest_pairs(projected: Array, rows: Rows, cell_size: int) -> Rows:
    """Return pairs (P, 2) of rows whose cosine is at least 0.85, each pair once.

    Args:
        projected: Unit-length features, shape (n, d).
        rows: Rows of the images, ascending, shape (n,).
        cell_size: Approximate number of images in a cell.
    """
    from sklearn.neighbors import NearestNeighbors  # the import takes over a second

    pair_ids = [np.empty(0, np.int64)]
    for members in _iter_cells(projected, cell_size):
        if len(members) < 2:
            continue
        num_neighbours = min(_NUM_NEIGHBOURS, len(members) - 1)
        search = NearestNeighbors(n_neighbors=num_neighbours, algorithm="brute")
        # without an argument: of each image to the others
        distance, neighbours = search.fit(projected[members]).kneighbors()
        one, which = np.nonzero(distance**2 <= 2 * (1 - _MIN_COSINE))
        ends = np.stack([members[one], members[neighbours[one, which]]])
        lower, higher = np.sort(ends, axis=0)
        pair_ids.append(lower * len(rows) + higher)
    # two images may share two cells
    unique_ids = np.unique(np.concatenate(pair_ids))
    pairs: Rows = rows[np.stack(np.divmod(unique_ids, max(1, len(rows))), axis=1)]
    return pairs


def _iter_cells(projected: Array, cell_size: int) -> Iterator[Rows]:
    """Yield the rows of each cell: of the images (n, d) to which its centre is among the nearest.

    The centres are images at regular intervals; each image is in the cells of its two nearest ones.
    The number of cells grows with n, so that their size does not.
    """
    num_cells = -(-len(projected) // cell_size)
    if num_cells < 2:
        yield np.arange(len(projected))
        return
    centres = projected[np.linspace(0, len(projected) - 1, num_cells).astype(np.int64)]
    nearest = np.empty((len(projected), _CELLS_PER_IMAGE), np.int32)
    for first in range(0, len(projected), _CHUNK_SIZE):
        distance = -projected[first : first + _CHUNK_SIZE] @ centres.T
        order = np.argpartition(distance, _CELLS_PER_IMAGE - 1, axis=1)
        nearest[first : first + _CHUNK_SIZE] = order[:, :_CELLS_PER_IMAGE]
    for cell in range(num_cells):
        yield np.flatnonzero((nearest == cell).any(axis=1))


def _filter_by_thumbnails(fingerprints: FingerprintTable, pairs: Rows) -> AlignedPairs:
    """Return the pairs whose thumbnails match, with their orientation and warp."""
    results = []
    for chunk, *thumbnails in iter_thumbnail_pairs(fingerprints, pairs):
        small = [downsample(images, _COARSE.side) for images in thumbnails]
        best = _build_initial_pairs(chunk, 1.0, 0)
        least = np.full(len(chunk), np.inf, np.float32)
        for scale, orientation in _INITIAL_ALIGNMENTS:
            initial = _build_initial_pairs(chunk, scale, orientation)
            aligned, difference = realign(_COARSE, initial, *small)
            is_better = difference < least
            least[is_better] = difference[is_better]
            best.orientations[is_better] = orientation
            best.warp[is_better] = aligned.warp[is_better]
        least[~is_similarly_bright(*small)] = np.inf
        kept = find_matches(fingerprints, _COARSE, best, least)
        images, others = (half[kept] for half in thumbnails)
        aligned, difference = realign(_MIDDLE, best.select(kept), images, others)
        results.append(aligned.select(find_matches(fingerprints, _MIDDLE, aligned, difference)))
    return concatenate_pairs(results)


def _build_initial_pairs(pairs: Rows, scale: float, orientation: int) -> AlignedPairs:
    warp = np.tile(np.array([scale, 0, scale, 0], np.float32), (len(pairs), 1))
    return AlignedPairs(pairs, np.full(len(pairs), orientation), warp)
