"""Pairs of images laid on one another, of which sieves keep those that are alike there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from finetune.audit.fingerprint import grey_pixels
from finetune.audit.fingerprint_table import Looks
from finetune.audit.image_alignment import CROPPED_BY_A_TENTH, Array, Reach, align, turned
from finetune.audit.union_find import Joined, Rows
from finetune.data.images.validate import on_all_cores

_PIXELS = 64
"""A side of what is decoded again."""

_SLICE = 2048
_SLICE_OF_FILES = 128


@dataclass(frozen=True, slots=True)
class Sieve:
    """One way to lay images on one another, and what may differ then.

    Attributes:
        side: Pixels a side.
        steps: Of the alignment.
        difference: The largest, between images of 64 pixels a side or more.
        reach: Of the alignment.
    """

    side: int
    steps: int
    difference: float
    reach: Reach = CROPPED_BY_A_TENTH


class Laid(NamedTuple):
    """Pairs of images on one another.

    Attributes:
        pairs: Their rows, shape (P, 2).
        turns: How the second is turned, shape (P,).
        placing: See ``Alignment``, shape (P, 4).
    """

    pairs: Rows
    turns: Rows
    placing: Array

    def of(self, some: Rows) -> "Laid":
        """Return some of them."""
        return Laid(self.pairs[some], self.turns[some], self.placing[some])


def all_laid(parts: Sequence[Laid]) -> Laid:
    """Return the pairs of all parts; of none, where there is no part."""
    none = Laid(np.empty((0, 2), np.int64), np.empty(0, np.int64), np.empty((0, 4), np.float32))
    return Laid(*(np.concatenate(column) for column in zip(none, *parts, strict=True)))


def thumbnails_of(looks: Looks, pairs: Rows) -> Iterator[tuple[Rows, Array, Array]]:
    """Yield some pairs at a time, with the thumbnails (n, S, S) of their images."""
    for some in slices(pairs):
        yield some, looks.thumbnails(some[:, 0]), looks.thumbnails(some[:, 1])


def laid_anew(sieve: Sieve, laid: Laid, images: Array, others: Array) -> tuple[Laid, Array]:
    """Return pairs as a sieve's alignment lays them, and what differs then, shape (P,).

    Args:
        sieve: Says how.
        laid: P pairs, where to begin.
        images: The first of each, shape (P, S, S).
        others: The second of each, not turned yet, shape (P, S, S).
    """
    others = _all_turned(others, laid.turns)
    found = align(images, others, steps=sieve.steps, reach=sieve.reach, placing=laid.placing)
    return laid._replace(placing=found.placing), found.difference


def alike(looks: Looks, sieve: Sieve, laid: Laid, difference: Array) -> Rows:
    """Return which pairs pass a sieve.

    An alignment has six unknowns. The fewer pixels there are, the less it proves if they agree.

    Args:
        looks: At all images.
        sieve: Says what is alike.
        laid: P pairs.
        difference: See ``laid_anew``.
    """
    sides = looks.shorter_sides(laid.pairs.ravel()).reshape(laid.pairs.shape).min(axis=1)
    meaning = np.square(np.minimum(1, sides / _PIXELS))
    return np.flatnonzero(difference < sieve.difference * meaning)


def join_alike(
    joined: Joined, looks: Looks, paths: Sequence[Path], likely: Laid, sieve: Sieve
) -> None:
    """Join the images of the pairs that are alike in their files, too.

    Of the pairs that would join the same images only one is looked at, as long as it passes.

    Args:
        joined: What is joined already, and will be.
        looks: At N images.
        paths: Their files, shape (N,).
        likely: Pairs that their thumbnails do not tell apart.
        sieve: For images of 64 pixels a side.

    Raises:
        DataError: A file has changed since it was looked at.
    """
    left = np.arange(len(likely.pairs))
    while chosen := joined.forest(likely.pairs[left]):
        for first in range(0, len(chosen), _SLICE_OF_FILES):
            tried = likely.of(left[chosen[first : first + _SLICE_OF_FILES]])
            for one, other in _alike_in_files(looks, paths, tried, sieve).tolist():
                joined.join(one, other)
        left = np.delete(left, chosen)


def shrunk(images: Array, side: int) -> Array:
    """Return images (P, S, S) as means over S / side pixels, shape (P, side, side)."""
    size = images.shape[1] // side
    means: Array = images.reshape(len(images), side, size, side, size).mean(axis=(2, 4))
    return means


def slices(rows: Rows) -> Iterator[Rows]:
    """Yield rows, or pairs of them, not too many at a time."""
    for first in range(0, len(rows), _SLICE):
        yield rows[first : first + _SLICE]


def _alike_in_files(looks: Looks, paths: Sequence[Path], likely: Laid, sieve: Sieve) -> Rows:
    rows, places = np.unique(likely.pairs, return_inverse=True)
    files = [paths[row] for row in rows.tolist()]
    images = np.stack(list(on_all_cores(_pixels, files)))[places.reshape(likely.pairs.shape)]
    laid, difference = laid_anew(sieve, likely, images[:, 0], images[:, 1])
    return laid.pairs[alike(looks, sieve, laid, difference)]


def _pixels(path: Path) -> Array:
    pixels: Array = gaussian_filter(grey_pixels(path, _PIXELS), 0.8)
    return pixels


def _all_turned(images: Array, turns: Rows) -> Array:
    """Return images (P, S, S), each turned in its own way."""
    result = np.empty_like(images)
    for turn in np.unique(turns).tolist():
        result[turns == turn] = turned(images[turns == turn], turn)
    return result
