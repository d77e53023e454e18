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
from finetune.audit.image_alignment import Array, Reach
from finetune.audit.near_duplicates import Copies, as_copies, first_of_the_same, to_be_compared
from finetune.audit.union_find import Joined, Rows

_LEAST_COSINE = 0.85
_NEIGHBOURS = 5
_DIMENSIONS = 128
"""A projection to so many moves a cosine of 0.85 by 0.025 (standard deviation), larger ones less
(Johnson and Lindenstrauss 1984)."""

_CELL = 8192
"""Images, about, among which the neighbours of one are looked for."""

_CELLS_OF_AN_IMAGE = 2

_REACH = Reach(stretch=1.6, shift=0.6)
_COARSE = Sieve(16, steps=5, difference=0.5, reach=_REACH)
_MIDDLE = Sieve(32, steps=6, difference=0.35, reach=_REACH)
_FINE = Sieve(64, steps=4, difference=0.03, reach=_REACH)
"""Finer than for other copies: the farther an alignment may go, the more it can make alike."""

_STARTS = tuple(product((1.0, 1.2, 1 / 1.2), (0, 1)))
"""Stretch, and turn: upright, or in a mirror."""

_CHUNK = 2048


class Features(Protocol):
    """What a backbone says of images, shape (N, D), read some rows at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """N, D."""

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Return some rows, shape (n, D)."""


def find_crops(
    looks: Looks,
    paths: Sequence[Path],
    known: Sequence[Copies],
    features: Sequence[Features],
    *,
    on_searched: Callable[[int], None] | None = None,
) -> list[Copies]:
    """Return all groups of copies: those that are known, and what features add to them.

    Args:
        looks: At N images.
        paths: Their files, shape (N,).
        known: What ``find_copies`` has found in them.
        features: Of the same images, one part after the other.
        on_searched: Called with a count of images, as they are compared; N in all.

    Raises:
        DataError: A file has changed since it was looked at.
    """
    joined, first = Joined(), first_of_the_same(looks)
    # one of each group stands for it: among its own copies it would find nothing else
    stands_for = np.arange(len(looks))
    for copies in known:
        stands_for[list(copies.rows)] = copies.rows[0]
        for row in copies.rows[1:]:
            joined.join(copies.rows[0], row)
    comparable = np.intersect1d(to_be_compared(looks, first), stands_for)
    advance = on_searched or (lambda count: None)
    advance(len(looks) - len(comparable))
    pairs, done = _nearest(_directions(features, comparable), comparable), 0
    for some in slices(pairs):
        join_alike(joined, looks, paths, _by_thumbnails(looks, some), _FINE)
        share = len(comparable) * len(some) // len(pairs)
        advance(share)
        done += share
    advance(len(comparable) - done)
    return as_copies(joined, first)


def _directions(features: Sequence[Features], rows: Rows) -> Array:
    """Return features of some images at length 1, in fewer dimensions, shape (n, d)."""
    width = features[0].shape[1]
    # the same in every run
    project = np.random.default_rng(0).standard_normal((width, _DIMENSIONS), np.float32)
    found = np.empty((len(rows), _DIMENSIONS), np.float32)
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


def _nearest(table: Array, rows: Rows) -> Rows:
    """Return pairs (P, 2) of images that point the same way, each pair once.

    Args:
        table: Directions, shape (n, d).
        rows: Of the images, ascending, shape (n,).
    """
    from sklearn.neighbors import NearestNeighbors  # over a second

    found = [np.empty(0, np.int64)]
    for members in _cells(table):
        if len(members) < 2:
            continue
        most = min(_NEIGHBOURS, len(members) - 1)
        search = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(table[members])
        distance, near = search.kneighbors()  # of each to the others
        one, which = np.nonzero(distance**2 <= 2 * (1 - _LEAST_COSINE))
        less, more = np.sort(np.stack([members[one], members[near[one, which]]]), axis=0)
        found.append(less * len(rows) + more)
    # both may lie in two cells
    numbers = np.unique(np.concatenate(found))
    pairs: Rows = rows[np.stack(np.divmod(numbers, max(1, len(rows))), axis=1)]
    return pairs


def _cells(table: Array) -> Iterator[Rows]:
    """Yield rows of directions (n, d), each in the cells of the two nearest of some of them.

    There are so many cells that one holds about as many however many images there are.
    """
    count = -(-len(table) // _CELL)
    if count < 2:
        yield np.arange(len(table))
        return
    centres = table[np.linspace(0, len(table) - 1, count).astype(np.int64)]
    nearest = np.empty((len(table), _CELLS_OF_AN_IMAGE), np.int32)
    for first in range(0, len(table), _CHUNK):
        far = -table[first : first + _CHUNK] @ centres.T
        order = np.argpartition(far, _CELLS_OF_AN_IMAGE - 1, axis=1)
        nearest[first : first + _CHUNK] = order[:, :_CELLS_OF_AN_IMAGE]
    for cell in range(count):
        yield np.flatnonzero((nearest == cell).any(axis=1))


def _by_thumbnails(looks: Looks, pairs: Rows) -> Laid:
    """Return the pairs whose thumbnails can be laid on one another, how turned, and where."""
    found = []
    for some, *thumbnails in thumbnails_of(looks, pairs):
        small = [shrunk(part, _COARSE.side) for part in thumbnails]
        likely, least = _begun(some, 1.0, 0), np.full(len(some), np.inf, np.float32)
        for stretch, turn in _STARTS:
            laid, difference = laid_anew(_COARSE, _begun(some, stretch, turn), *small)
            better = difference < least
            least[better] = difference[better]
            likely.turns[better], likely.placing[better] = turn, laid.placing[better]
        kept = alike(looks, _COARSE, likely, least)
        images, others = (part[kept] for part in thumbnails)
        laid, difference = laid_anew(_MIDDLE, likely.of(kept), images, others)
        found.append(laid.of(alike(looks, _MIDDLE, laid, difference)))
    return all_laid(found)


def _begun(pairs: Rows, stretch: float, turn: int) -> Laid:
    placing = np.tile(np.array([stretch, 0, stretch, 0], np.float32), (len(pairs), 1))
    return Laid(pairs, np.full(len(pairs), turn), placing)
