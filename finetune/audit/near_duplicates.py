"""Which images of a data set are copies of one another, to the byte or to the eye.

Exact copies share the digest of their files. Near copies are found in three sieves, each finer and
dearer than the one before: the nearest neighbours of each image by a short description, in a tree
that is searched in about logarithmic time; their thumbnails, laid on one another; and what passes
both, decoded again at 64 pixels a side.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

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
from finetune.audit.image_alignment import (
    build_identity_warp,
    compute_descriptors,
    find_best_orientations,
)
from finetune.audit.union_find import Rows, UnionFind

BLANK_CONTRAST = 0.03
"""Images of less contrast show nothing that could be compared."""

_NUM_NEIGHBOURS = 10
_MAX_DISTANCE = 0.3
_SEARCH_EPS = 1.0
"""Neighbours may be left out that are less than twice as near as those found."""

_MIN_CORRELATION = 0.5

_COARSE = FilterStage(16, steps=2, max_difference=0.4)
_MIDDLE = FilterStage(32, steps=4, max_difference=0.25)
_FINE = FilterStage(64, steps=4, max_difference=0.08)
"""The last one parts copies from other photos of the same scene (``scripts/benchmarks/copies.py``);
the others pass ten times as many crops as they would have to."""

_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Images that show the same.

    Attributes:
        rows: Of the images, ascending, two or more.
        is_exact: Whether all their files are the same to the byte.
    """

    rows: tuple[int, ...]
    is_exact: bool


def find_duplicates(
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> list[DuplicateGroup]:
    """Return all groups of copies; an image is in one at most.

    Args:
        fingerprints: Of N images.
        paths: Their files, shape (N,).
        on_progress: Called with a count of images, as they are compared; N in all.

    Raises:
        DataError: A file has changed since it was looked at.
    """
    joined = UnionFind()
    first = find_first_identical(fingerprints)
    for row in np.flatnonzero(first != np.arange(len(first))).tolist():
        joined.merge(int(first[row]), row)
    comparable = select_comparable(fingerprints, first)
    if on_progress is not None:
        on_progress(len(fingerprints) - len(comparable))
    for candidates, done in _iter_neighbour_pairs(fingerprints, comparable):
        merge_matches(
            joined, fingerprints, paths, _filter_by_thumbnails(fingerprints, candidates), _FINE
        )
        if on_progress is not None:
            on_progress(done)
    return build_duplicate_groups(joined, first)


def find_first_identical(fingerprints: FingerprintTable) -> Rows:
    """Return for each image the first one whose file is the same to the byte, shape (N,)."""
    digests = np.ascontiguousarray(fingerprints.read_column("digest")).view("V16").reshape(-1)
    _, first, same = np.unique(digests, return_index=True, return_inverse=True)
    return np.asarray(first[same], np.int64)


def select_comparable(fingerprints: FingerprintTable, first_identical: Rows) -> Rows:
    """Return the rows of images that show something, of the same files only the first.

    Args:
        fingerprints: At N images.
        first_identical: See ``find_first_identical``.
    """
    some = np.unique(first_identical)
    return np.asarray(some[fingerprints.read_column("contrast")[some] >= BLANK_CONTRAST], np.int64)


def build_duplicate_groups(union_find: UnionFind, first_identical: Rows) -> list[DuplicateGroup]:
    """Return what was joined, in the order of the images.

    Args:
        union_find: Rows of N images.
        first_identical: See ``find_first_identical``.
    """
    found = [
        DuplicateGroup(tuple(rows), len({*first_identical[rows].tolist()}) == 1)
        for rows in union_find.list_groups()
    ]
    return sorted(found, key=lambda copies: copies.rows)


def _iter_neighbour_pairs(fingerprints: FingerprintTable, rows: Rows) -> Iterator[tuple[Rows, int]]:
    """Yield pairs (P, 2) of images that look alike from afar, and how many were searched for."""
    parts = [compute_descriptors(fingerprints.read_thumbnails(some)) for some in iter_chunks(rows)]
    if len(rows) < 2:
        yield np.empty((0, 2), np.int64), len(rows)
        return
    table = np.concatenate(parts)
    # built by sliding midpoints: medians take long, and bring nothing for such tables
    tree = KDTree(table, balanced_tree=False, compact_nodes=False)
    for first in range(0, len(rows), _CHUNK):
        some = table[first : first + _CHUNK]
        _, near = tree.query(
            some,
            _NUM_NEIGHBOURS + 1,
            eps=_SEARCH_EPS,
            distance_upper_bound=_MAX_DISTANCE,
            workers=-1,
        )
        one = np.repeat(np.arange(first, first + len(some)), near.shape[1])
        other = near.ravel()
        # a neighbour that was not found has the number of rows; each pair stands once
        real = (other < len(rows)) & (other != one)
        pairs = np.sort(np.stack([one[real], other[real]], axis=1), axis=1)
        yield rows[np.unique(pairs, axis=0)], len(some)


def _filter_by_thumbnails(fingerprints: FingerprintTable, pairs: Rows) -> AlignedPairs:
    """Return the pairs whose thumbnails can be laid on one another, how turned, and where."""
    found = []
    for some, *thumbnails in iter_thumbnail_pairs(fingerprints, pairs):
        small = [downsample(part, _COARSE.side) for part in thumbnails]
        turns, correlation = find_best_orientations(small[0], small[1])
        kept = np.flatnonzero(correlation >= _MIN_CORRELATION)
        likely = AlignedPairs(some, turns, build_identity_warp(len(some))).select(kept)
        for sieve, (images, others) in ((_COARSE, small), (_MIDDLE, thumbnails)):
            laid, difference = realign(sieve, likely, images[kept], others[kept])
            passed = find_matches(fingerprints, sieve, laid, difference)
            likely, kept = laid.select(passed), kept[passed]
        found.append(likely)
    return concatenate_pairs(found)
