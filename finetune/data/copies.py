"""Which images of a data set are copies of one another, to the byte or to the eye.

Exact copies share the digest of their files. Near copies are found in three sieves, each finer and
dearer than the one before: the nearest neighbours of each image by a short description, in a tree
that is searched in about logarithmic time; their thumbnails, laid on one another; and what passes
both, decoded again at 64 pixels a side.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from finetune.data.likeness import Array, align, as_they_lie, best_turns, describe, turned
from finetune.data.look import grey_pixels
from finetune.data.looks import Looks
from finetune.data.reading import on_all_cores

BLANK = 0.03
"""Images of less contrast show nothing that could be compared."""

_NEIGHBOURS = 10
_FARTHEST = 0.3
_SLACK = 1.0
"""Neighbours may be left out that are less than twice as near as those found."""

_CORRELATED = 0.5


@dataclass(frozen=True, slots=True)
class _Sieve:
    """One way to lay images on one another, and what may differ then.

    Attributes:
        side: Pixels a side.
        steps: Of the alignment.
        difference: The largest, between images of 64 pixels a side or more.
    """

    side: int
    steps: int
    difference: float


_COARSE = _Sieve(16, 2, 0.4)
_MIDDLE = _Sieve(32, 4, 0.25)
_FINE = _Sieve(64, 4, 0.08)
"""The last one parts copies from other photos of the same scene (``scripts/benchmarks/copies.py``);
the others pass ten times as many crops as they would have to."""

_CHUNK = 2048
_FINE_CHUNK = 128

Rows = NDArray[np.int64]


class _Laid(NamedTuple):
    """Pairs of images on one another.

    Attributes:
        pairs: Their rows, shape (P, 2).
        turns: How the second is turned, shape (P,).
        placing: See ``Alignment``, shape (P, 4).
    """

    pairs: Rows
    turns: Rows
    placing: Array

    def of(self, some: Rows) -> "_Laid":
        """Return some of them."""
        return _Laid(self.pairs[some], self.turns[some], self.placing[some])


def _nothing_laid() -> _Laid:
    return _Laid(np.empty((0, 2), np.int64), np.empty(0, np.int64), np.empty((0, 4), np.float32))


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
    if not len(looks):
        return []
    digests = np.ascontiguousarray(looks.column("digest")).view("V16")[:, 0]
    _, first, same = np.unique(digests, return_index=True, return_inverse=True)
    joined = DisjointSet()
    for row in np.flatnonzero(first[same] != np.arange(len(same))).tolist():
        _join(joined, int(first[same[row]]), row)
    comparable = np.sort(first[looks.column("contrast")[first] >= BLANK])
    if on_searched is not None:
        on_searched(len(looks) - len(comparable))
    for candidates, done in _neighbours(looks, comparable):
        _join_alike(joined, looks, paths, _by_thumbnails(looks, candidates))
        if on_searched is not None:
            on_searched(done)
    groups = (sorted(group) for group in joined.subsets())
    found = [Copies(tuple(rows), len(set(same[rows].tolist())) == 1) for rows in groups]
    return sorted(found, key=lambda copies: copies.rows)


def _join(joined: DisjointSet, one: int, other: int) -> None:
    joined.add(one)
    joined.add(other)
    joined.merge(one, other)


def _join_alike(joined: DisjointSet, looks: Looks, paths: Sequence[Path], likely: _Laid) -> None:
    """Join the images of the pairs that are alike in their files, too.

    Of the pairs that would join the same images only one is looked at, as long as it passes.
    """
    left = np.arange(len(likely.pairs))
    while chosen := _forest(joined, likely.pairs[left]):
        for first in range(0, len(chosen), _FINE_CHUNK):
            tried = likely.of(left[chosen[first : first + _FINE_CHUNK]])
            for one, other in _by_pixels(looks, paths, tried).tolist():
                _join(joined, one, other)
        left = np.delete(left, chosen)


def _group_of(joined: DisjointSet, row: int) -> int:
    try:
        return int(joined[row])
    except KeyError:  # an image that is not joined to any
        return row


def _forest(joined: DisjointSet, pairs: Rows) -> list[int]:
    """Return which pairs would join what is not joined yet, none of them in vain."""
    trial = DisjointSet()
    chosen = []
    for number, pair in enumerate(pairs.tolist()):
        one, other = (_group_of(joined, row) for row in pair)
        trial.add(one)
        trial.add(other)
        if trial.merge(one, other):
            chosen.append(number)
    return chosen


def _neighbours(looks: Looks, rows: Rows) -> Iterator[tuple[Rows, int]]:
    """Yield pairs (P, 2) of images that look alike from afar, and how many were searched for."""
    parts = [describe(looks.thumbnails(some)) for some in _slices(rows)]
    if len(rows) < 2:
        yield _nothing_laid().pairs, len(rows)
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


def _by_thumbnails(looks: Looks, pairs: Rows) -> _Laid:
    """Return the pairs whose thumbnails can be laid on one another, how turned, and where."""
    found = [_nothing_laid()]
    for some in _slices(pairs):
        thumbnails = [looks.thumbnails(some[:, side]) for side in (0, 1)]
        images, others = (_shrunk(part, _COARSE.side) for part in thumbnails)
        turns, correlation = best_turns(images, others)
        likely = _Laid(some, turns, as_they_lie(len(some)))
        kept = np.flatnonzero(correlation >= _CORRELATED)
        for sieve, parts in ((_COARSE, (images, others)), (_MIDDLE, thumbnails)):
            kept = kept[_alike(looks, sieve, likely, kept, *parts)]
        found.append(likely.of(kept))
    return _Laid(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _by_pixels(looks: Looks, paths: Sequence[Path], likely: _Laid) -> Rows:
    """Return the pairs that are alike in their files, too."""
    if not len(likely.pairs):
        return likely.pairs
    rows, places = np.unique(likely.pairs, return_inverse=True)
    files = [paths[row] for row in rows.tolist()]
    images = np.stack(list(on_all_cores(_fine_pixels, files)))[places.reshape(likely.pairs.shape)]
    all_of_them = np.arange(len(images))
    return likely.pairs[_alike(looks, _FINE, likely, all_of_them, images[:, 0], images[:, 1])]


def _alike(
    looks: Looks, sieve: _Sieve, likely: _Laid, some: Rows, images: Array, others: Array
) -> NDArray[np.bool_]:
    """Return which of some pairs pass a sieve, shape (n,), and note where they lie."""
    others = _all_turned(others[some], likely.turns[some])
    found = align(images[some], others, steps=sieve.steps, placing=likely.placing[some])
    likely.placing[some] = found.placing
    return found.difference < sieve.difference * _meaning(looks, likely.pairs[some])


def _meaning(looks: Looks, pairs: Rows) -> Array:
    """Return what share of a difference may stay for images that are small, in (0, 1].

    An alignment has six unknowns. The fewer pixels there are, the less it proves if they agree.
    """
    sides = looks.shorter_sides(pairs.ravel()).reshape(pairs.shape).min(axis=1)
    share: Array = np.square(np.minimum(1, sides / _FINE.side)).astype(np.float32)
    return share


def _fine_pixels(path: Path) -> Array:
    pixels: Array = gaussian_filter(grey_pixels(path, _FINE.side), 0.8)
    return pixels


def _all_turned(images: Array, turns: Rows) -> Array:
    """Return images (P, S, S), each turned in its own way."""
    result = np.empty_like(images)
    for turn in np.unique(turns).tolist():
        result[turns == turn] = turned(images[turns == turn], turn)
    return result


def _shrunk(images: Array, side: int) -> Array:
    size = images.shape[1] // side
    shrunk: Array = images.reshape(len(images), side, size, side, size).mean(axis=(2, 4))
    return shrunk


def _slices(rows: Rows) -> Iterator[Rows]:
    for first in range(0, len(rows), _CHUNK):
        yield rows[first : first + _CHUNK]
