"""How alike two images are, whatever was done to one of them: turned, mirrored, cropped, dimmed.

Images are grey levels in [0, 255] on squares of S x S pixels, to which they were squeezed. A crop
then is a stretch and a shift along each axis, which ``align`` undoes; what remains is held against
the detail that there is, so that two photos of different things on one empty table are not alike.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]
# P pairs or images, S pixels a side

NUM_TURNS = 8
"""Ways to turn a square and to see it in a mirror."""

_FREQUENCIES = 5

_NOISE = 4.0
"""Variance in grey levels that the coding of an image adds, or less."""

_WHITE = 250.0
"""Grey level from which a brighter copy may have lost what the other image shows."""

_LEAST_KNOWN = 0.4

_COARSE = 8
"""Detail is what is smaller than this part of a side."""


class Reach(NamedTuple):
    """How far one image of a pair may lie from the other.

    Attributes:
        stretch: The largest along an axis, or one over it.
        shift: The largest along an axis, in half sides.
    """

    stretch: float
    shift: float


CROPPED_BY_A_TENTH = Reach(stretch=1.18, shift=0.2)
"""And by a little more."""


class Alignment(NamedTuple):
    """How one image of each pair comes to lie on the other.

    Attributes:
        placing: Stretch and shift down, stretch and shift across, shape (P, 4); shifts in half
            sides.
        difference: Mean squared difference once it lies there and is as bright and as rich in
            contrast, as a share of the mean squared detail of the plainer image, shape (P,).
    """

    placing: Array
    difference: Array


def describe(images: Array) -> Array:
    """Return what tells images apart and stays as it is when they are turned or dimmed.

    The sizes of their lowest frequencies, as perceptual hashes take them, but as numbers instead of
    bits, and with what a turn or a mirror exchanges put together: sums and differences of the
    amplitudes down and across, whose signs they change.

    Args:
        images: Shape (P, S, S).

    Returns:
        Shape (P, 24).
    """
    flat = images.reshape(len(images), images.shape[1] * images.shape[2])
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(flat.std(axis=1, keepdims=True), 1e-6)
    side = images.shape[1]
    waves = dctn(flat.reshape(images.shape), axes=(1, 2), norm="ortho") / side
    sizes = np.abs(waves[:, :_FREQUENCIES, :_FREQUENCIES])
    down, across = np.triu_indices(_FREQUENCIES, k=1)
    one, other = sizes[:, down, across], sizes[:, across, down]
    diagonal = np.arange(1, _FREQUENCIES)
    parts = (sizes[:, diagonal, diagonal], (one + other) / 2**0.5, np.abs(one - other) / 2**0.5)
    return np.concatenate(parts, axis=1).astype(np.float32)


def turned(images: Array, turn: int) -> Array:
    """Return images (P, S, S) in one of the ``NUM_TURNS`` ways to turn and mirror them."""
    if turn & 4:
        images = images.transpose(0, 2, 1)
    return images[:, :: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1]


def best_turns(images: Array, others: Array) -> tuple[NDArray[np.int64], Array]:
    """Return how the others are turned to be most like the images, and their correlation then.

    Args:
        images: Shape (P, S, S).
        others: Of the same shape.

    Returns:
        Turns, shape (P,), and correlations in [-1, 1], shape (P,).
    """
    flat = _unit(images)
    found = np.stack(
        [(flat * _unit(turned(others, turn))).sum(axis=1) for turn in range(NUM_TURNS)]
    )
    return found.argmax(axis=0), found.max(axis=0)


def as_they_lie(count: int) -> Array:
    """Return the placing (P, 4) of images that are neither stretched nor shifted."""
    return np.tile(np.array([1, 0, 1, 0], np.float32), (count, 1))


def align(
    images: Array,
    others: Array,
    *,
    steps: int,
    reach: Reach = CROPPED_BY_A_TENTH,
    placing: Array | None = None,
) -> Alignment:
    """Return how each of the others is stretched and shifted to lie on its image.

    Gauss-Newton on both axes, with brightness and contrast (Lucas and Kanade 1981; Baker and
    Matthews 2004, https://doi.org/10.1023/B:VISI.0000011205.11775.fd); the best of all steps.

    Args:
        images: Shape (P, S, S).
        others: Of the same shape, turned as the images are.
        steps: How many.
        reach: No placing goes farther.
        placing: Where to begin; None begins with the others as they are.
    """
    count, side, _ = images.shape
    place = as_they_lie(count) if placing is None else placing.copy()
    if not count:
        return Alignment(place, np.empty(0, np.float32))
    best, least = place.copy(), np.full(count, np.inf, np.float32)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    half = (side - 1) / 2
    slopes = [np.gradient(others, axis=number).astype(np.float32) * half for number in (1, 2)]
    for step in range(steps + 1):
        down = _sampling(place[:, 0:1] * axis + place[:, 1:2], side)
        across = _sampling(place[:, 2:3] * axis + place[:, 3:4], side).transpose(0, 2, 1)
        placed = _placed(others, down, across)
        inside: Array = _inside(down.sum(axis=2))[:, :, None] * _inside(across.sum(axis=1))[:, None]
        inside = _unclipped(inside, images, placed)
        area: Array = inside.sum(axis=(1, 2))
        image, moved = (_centred(part, inside, area) for part in (images, placed))
        gain = _quotient(_dot(image, moved), np.maximum(_dot(moved, moved), 1e-6))
        rest: Array = image - gain[:, None, None] * moved
        error = _quotient(_dot(rest, rest), area)
        closer = error < least
        best[closer], least[closer] = place[closer], error[closer]
        if step == steps:
            break
        slope_down, slope_across = (
            _placed(slope, down, across) * inside * gain[:, None, None] for slope in slopes
        )
        columns = (
            slope_down * axis[:, None], slope_down, slope_across * axis, slope_across, moved, inside
        )  # fmt: skip
        place += _solved(np.stack(columns, axis=-1), rest)
        place[:, 0::2] = np.clip(place[:, 0::2], 1 / reach.stretch, reach.stretch)
        place[:, 1::2] = np.clip(place[:, 1::2], -reach.shift, reach.shift)
    detail = np.minimum(_detail(images), _detail(others))
    noisy: Array = np.add(detail, _NOISE, dtype=np.float32)
    return Alignment(best, _quotient(least, noisy))


def _sampling(centres: Array, side: int) -> Array:
    """Return what takes pixels at some centres in [-1, 1] (P, S) from a line, shape (P, S, S)."""
    places = (centres + 1) * ((side - 1) / 2)
    distance = np.abs(places[:, :, None] - np.arange(side, dtype=np.float32))
    weights: Array = np.maximum(0, 1 - distance).astype(np.float32)
    return weights


def _placed(images: Array, down: Array, across: Array) -> Array:
    placed: Array = np.matmul(np.matmul(down, images), across)
    return placed


def _inside(covered: Array) -> Array:
    return (covered > 0.999).astype(np.float32)


def _unclipped(inside: Array, images: Array, placed: Array) -> Array:
    """Return which pixels say something: not what one image shows as white, if enough is left."""
    known: Array = inside * (images < _WHITE) * (placed < _WHITE)
    enough = known.sum(axis=(1, 2)) >= _LEAST_KNOWN * inside.sum(axis=(1, 2))
    return np.where(enough[:, None, None], known, inside).astype(np.float32)


def _centred(images: Array, inside: Array, area: Array) -> Array:
    mean = _quotient((images * inside).sum(axis=(1, 2)), area)
    centred: Array = (images - mean[:, None, None]) * inside
    return centred


def _quotient(one: Array, other: Array) -> Array:
    quotient: Array = np.divide(one, other, dtype=np.float32)
    return quotient


def _dot(one: Array, other: Array) -> Array:
    product: Array = np.einsum("pij,pij->p", one, other)
    return product


def _solved(columns: Array, rest: Array) -> Array:
    """Return the step of the first four unknowns, (P, 4), for the least squares of what is left."""
    count = len(columns)
    table = columns.reshape(count, -1, columns.shape[-1])
    normal = table.transpose(0, 2, 1) @ table
    damping = 1e-5 * np.trace(normal, axis1=1, axis2=2) / 6 + 1e-6
    normal += damping[:, None, None] * np.eye(6, dtype=np.float32)
    sums = np.einsum("pnk,pn->pk", table, rest.reshape(count, -1))
    step: Array = np.linalg.solve(normal, sums[..., None])[:, :4, 0]
    return np.clip(step, -0.1, 0.1)


def _detail(images: Array) -> Array:
    """Return the mean squared difference of images from their coarse parts, shape (P,)."""
    width = images.shape[1] / _COARSE
    fine = images - gaussian_filter(images, (0, width, width), mode="reflect")
    detail: Array = np.square(fine).mean(axis=(1, 2))
    return detail


def _unit(images: Array) -> Array:
    flat = images.reshape(len(images), images.shape[1] * images.shape[2])
    flat = flat - flat.mean(axis=1, keepdims=True)
    unit: Array = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return unit
