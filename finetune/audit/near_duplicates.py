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
    Laid,
    Sieve,
    alike,
    all_laid,
    join_alike,
    laid_anew,
    shrunk,
    slices,
    thumbnails_of,
)
from finetune.audit.fingerprint_table import Looks
from finetune.audit.image_alignment import as_they_lie, best_turns, describe
from finetune.audit.union_find import Joined, Rows

BLANK = 0.03
"""Images of less contrast show nothing that could be compared."""

_NEIGHBOURS = 10
_FARTHEST = 0.3
_SLACK = 1.0
"""Neighbours may be left out that are less than twice as near as those found."""

_CORRELATED = 0.5

_COARSE = Sieve(16, steps=2, difference=0.4)
_MIDDLE = Sieve(32, steps=4, difference=0.25)
_FINE = Sieve(64, steps=4, difference=0.08)
"""The last one parts copies from other photos of the same scene (``scripts/benchmarks/copies.py``);
the others pass ten times as many crops as they would have to."""

_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Copies:
    """Images that show the same.

    Attributes:
        rows: Of the images, ascending, two or more.
        exact: Whether all their files are the same to the byte.
    """

    rows: tuple[int, ...]
    exact: bool


def find_copies(
    looks: Looks, paths: Sequence[Path], *, on_searched: Callable[[int], None] | None = None
) -> list[Copies]:
    """Return all groups of copies; an image is in one at most.

    Args:
        looks: Of N images.
        paths: Their files, shape (N,).
        on_searched: Called with a count of images, as they are compared; N in all.

    Raises:
        DataError: A file has changed since it was looked at.
    """
    joined = Joined()
    first = first_of_the_same(looks)
    for row in np.flatnonzero(first != np.arange(len(first))).tolist():
        joined.join(int(first[row]), row)
    comparable = to_be_compared(looks, first)
    if on_searched is not None:
        on_searched(len(looks) - len(comparable))
    for candidates, done in _neighbours(looks, comparable):
        join_alike(joined, looks, paths, _by_thumbnails(looks, candidates), _FINE)
        if on_searched is not None:
            on_searched(done)
    return as_copies(joined, first)


def first_of_the_same(looks: Looks) -> Rows:
    """Return for each image the first one whose file is the same to the byte, shape (N,)."""
    digests = np.ascontiguousarray(looks.column("digest")).view("V16").reshape(-1)
    _, first, same = np.unique(digests, return_index=True, return_inverse=True)
    return np.asarray(first[same], np.int64)


def to_be_compared(looks: Looks, first: Rows) -> Rows:
    """Return the rows of images that show something, of the same files only the first.

    Args:
        looks: At N images.
        first: See ``first_of_the_same``.
    """
    some = np.unique(first)
    return np.asarray(some[looks.column("contrast")[some] >= BLANK], np.int64)


def as_copies(joined: Joined, first: Rows) -> list[Copies]:
    """Return what was joined, in the order of the images.

    Args:
        joined: Rows of N images.
        first: See ``first_of_the_same``.
    """
    found = [Copies(tuple(rows), len({*first[rows].tolist()}) == 1) for rows in joined.groups()]
    return sorted(found, key=lambda copies: copies.rows)


def _neighbours(looks: Looks, rows: Rows) -> Iterator[tuple[Rows, int]]:
    """Yield pairs (P, 2) of images that look alike from afar, and how many were searched for."""
    parts = [describe(looks.thumbnails(some)) for some in slices(rows)]
    if len(rows) < 2:
        yield np.empty((0, 2), np.int64), len(rows)
        return
    table = np.concatenate(parts)
    # built by sliding midpoints: medians take long, and bring nothing for such tables
    tree = KDTree(table, balanced_tree=False, compact_nodes=False)
    for first in range(0, len(rows), _CHUNK):
        some = table[first : first + _CHUNK]
        _, near = tree.query(
            some, _NEIGHBOURS + 1, eps=_SLACK, distance_upper_bound=_FARTHEST, workers=-1
        )
        one = np.repeat(np.arange(first, first + len(some)), near.shape[1])
        other = near.ravel()
        # a neighbour that was not found has the number of rows; each pair stands once
        real = (other < len(rows)) & (other != one)
        pairs = np.sort(np.stack([one[real], other[real]], axis=1), axis=1)
        yield rows[np.unique(pairs, axis=0)], len(some)


def _by_thumbnails(looks: Looks, pairs: Rows) -> Laid:
    """Return the pairs whose thumbnails can be laid on one another, how turned, and where."""
    found = []
    for some, *thumbnails in thumbnails_of(looks, pairs):
        small = [shrunk(part, _COARSE.side) for part in thumbnails]
        turns, correlation = best_turns(small[0], small[1])
        kept = np.flatnonzero(correlation >= _CORRELATED)
        likely = Laid(some, turns, as_they_lie(len(some))).of(kept)
        for sieve, (images, others) in ((_COARSE, small), (_MIDDLE, thumbnails)):
            laid, difference = laid_anew(sieve, likely, images[kept], others[kept])
            passed = alike(looks, sieve, laid, difference)
            likely, kept = laid.of(passed), kept[passed]
        found.append(likely)
    return all_laid(found)
