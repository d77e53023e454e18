"""Exact and near-duplicates among the images of a dataset.

Exact duplicates share the digest of their files. Near-duplicates pass three filters, each finer and
more expensive than the one before: the nearest neighbours of each image by a short descriptor, from
a tree that is searched in about logarithmic time; the alignment of their thumbnails; and, for pairs
that pass both, the alignment of the files decoded again at 64 pixels a side.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

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
from finetune.audit.image_alignment import (
    build_identity_warp,
    compute_descriptors,
    find_best_orientations,
)

BLANK_CONTRAST = 0.03
"""Contrast below which an image has no content to compare."""

_NUM_NEIGHBOURS = 10
_MAX_DISTANCE = 0.3
_SEARCH_EPS = 1.0
"""Tolerance of the tree search: a returned neighbour is at most 1 + eps times as far as the true
one."""

_MIN_CORRELATION = 0.5

_COARSE = FilterStage(16, steps=2, max_difference=0.4)
_MIDDLE = FilterStage(32, steps=4, max_difference=0.25)
_FINE = FilterStage(64, steps=4, max_difference=0.08)
"""The finest stage separates duplicates from other photos of the same scene
(``scripts/benchmarks/duplicates.py``); the others let ten times as many crops pass as needed."""

_CHUNK_SIZE = 2048


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """A group of duplicate images.

    Attributes:
        rows: Rows of the images, ascending, two or more.
        is_exact: Whether all of their files are byte-identical.
    """

    rows: tuple[int, ...]
    is_exact: bool


def find_duplicates(
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> list[DuplicateGroup]:
    """Return all groups of duplicates; an image is in at most one.

    Args:
        fingerprints: Fingerprints of N images.
        paths: Their files, shape (N,).
        on_progress: Called with numbers of images as they are compared; they add up to N.

    Raises:
        DataError: A file has changed since its fingerprint was computed.
    """
    union_find = UnionFind()
    first = find_first_identical(fingerprints)
    for row in np.flatnonzero(first != np.arange(len(first))).tolist():
        union_find.merge(int(first[row]), row)
    comparable = select_comparable(fingerprints, first)
    if on_progress is not None:
        on_progress(len(fingerprints) - len(comparable))
    for candidates, num_searched in _iter_neighbour_pairs(fingerprints, comparable):
        merge_matches(
            union_find, fingerprints, paths, _filter_by_thumbnails(fingerprints, candidates), _FINE
        )
        if on_progress is not None:
            on_progress(num_searched)
    return build_duplicate_groups(union_find, first)


def find_first_identical(fingerprints: FingerprintTable) -> Rows:
    """Return for each image the first row whose file is byte-identical, shape (N,)."""
    digests = np.ascontiguousarray(fingerprints.read_column("digest")).view("V16").reshape(-1)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def select_comparable(fingerprints: FingerprintTable, first_identical: Rows) -> Rows:
    """Return the rows of images that are not blank, only the first of byte-identical files.

    Args:
        fingerprints: Fingerprints of N images.
        first_identical: Result of ``find_first_identical``, shape (N,).
    """
    rows = np.unique(first_identical)
    return np.asarray(rows[fingerprints.read_column("contrast")[rows] >= BLANK_CONTRAST], np.int64)


def build_duplicate_groups(union_find: UnionFind, first_identical: Rows) -> list[DuplicateGroup]:
    """Return the groups of two or more rows, in the order of their first rows.

    Args:
        union_find: Groups of the rows of N images.
        first_identical: Result of ``find_first_identical``, shape (N,).
    """
    groups = [
        DuplicateGroup(tuple(rows), len({*first_identical[rows].tolist()}) == 1)
        for rows in union_find.list_groups()
    ]
    return sorted(groups, key=lambda group: group.rows)


def _iter_neighbour_pairs(fingerprints: FingerprintTable, rows: Rows) -> Iterator[tuple[Rows, int]]:
    """Yield pairs (P, 2) of rows with similar descriptors, and the number of rows searched for."""
    chunks = [
        compute_descriptors(fingerprints.read_thumbnails(chunk)) for chunk in iter_chunks(rows)
    ]
    if len(rows) < 2:
        yield np.empty((0, 2), np.int64), len(rows)
        return
    descriptors = np.concatenate(chunks)
    # sliding midpoints: the median split takes long to build and does not speed up these searches
    tree = KDTree(descriptors, balanced_tree=False, compact_nodes=False)
    for first in range(0, len(rows), _CHUNK_SIZE):
        queries = descriptors[first : first + _CHUNK_SIZE]
        _, neighbours = tree.query(
            queries,
            _NUM_NEIGHBOURS + 1,
            eps=_SEARCH_EPS,
            distance_upper_bound=_MAX_DISTANCE,
            workers=-1,
        )
        one = np.repeat(np.arange(first, first + len(queries)), neighbours.shape[1])
        other = neighbours.ravel()
        # a missing neighbour has the index len(rows); each pair is kept once
        is_pair = (other < len(rows)) & (other != one)
        pairs = np.sort(np.stack([one[is_pair], other[is_pair]], axis=1), axis=1)
        yield rows[np.unique(pairs, axis=0)], len(queries)


def _filter_by_thumbnails(fingerprints: FingerprintTable, pairs: Rows) -> AlignedPairs:
    """Return the pairs whose thumbnails match, with their orientation and warp."""
    results = []
    for chunk, *thumbnails in iter_thumbnail_pairs(fingerprints, pairs):
        small = [downsample(images, _COARSE.side) for images in thumbnails]
        orientations, correlation = find_best_orientations(small[0], small[1])
        kept = np.flatnonzero((correlation >= _MIN_CORRELATION) & is_similarly_bright(*small))
        initial = AlignedPairs(chunk, orientations, build_identity_warp(len(chunk)))
        candidates = initial.select(kept)
        for stage, (images, others) in ((_COARSE, small), (_MIDDLE, thumbnails)):
            aligned, difference = realign(stage, candidates, images[kept], others[kept])
            passed = find_matches(fingerprints, stage, aligned, difference)
            candidates, kept = aligned.select(passed), kept[passed]
        results.append(candidates)
    return concatenate_pairs(results)
