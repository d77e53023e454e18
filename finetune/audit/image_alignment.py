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

NUM_ORIENTATIONS = 8
"""Ways to turn a square and to see it in a mirror."""

_NUM_FREQUENCIES = 5

_NOISE_VARIANCE = 4.0
"""Variance in grey levels that the coding of an image adds, or less."""

_WHITE_LEVEL = 250.0
"""Grey level from which a brighter copy may have lost what the other image shows."""

_MIN_VALID_FRACTION = 0.4

_DETAIL_DIVISOR = 8
"""Detail is what is smaller than this part of a side."""


class AlignmentBounds(NamedTuple):
    """How far one image of a pair may lie from the other.

    Attributes:
        max_scale: The largest along an axis, or one over it.
        max_shift: The largest along an axis, in half sides.
    """

    max_scale: float
    max_shift: float


DEFAULT_BOUNDS = AlignmentBounds(max_scale=1.18, max_shift=0.2)
"""And by a little more."""


class Alignment(NamedTuple):
    """How one image of each pair comes to lie on the other.

    Attributes:
        warp: Stretch and shift down, stretch and shift across, shape (P, 4); shifts in half
            sides.
        difference: Mean squared difference once it lies there and is as bright and as rich in
            contrast, as a share of the mean squared detail of the plainer image, shape (P,).
    """

    warp: Array
    difference: Array


def compute_descriptors(images: Array) -> Array:
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
    sizes = np.abs(waves[:, :_NUM_FREQUENCIES, :_NUM_FREQUENCIES])
    down, across = np.triu_indices(_NUM_FREQUENCIES, k=1)
    one, other = sizes[:, down, across], sizes[:, across, down]
    diagonal = np.arange(1, _NUM_FREQUENCIES)
    parts = (sizes[:, diagonal, diagonal], (one + other) / 2**0.5, np.abs(one - other) / 2**0.5)
    return np.concatenate(parts, axis=1).astype(np.float32)


def apply_orientation(images: Array, orientation: int) -> Array:
    """Return images (P, S, S) in one of the ``NUM_ORIENTATIONS`` ways to turn and mirror them."""
    if orientation & 4:
        images = images.transpose(0, 2, 1)
    return images[:, :: -1 if orientation & 2 else 1, :: -1 if orientation & 1 else 1]


def find_best_orientations(images: Array, others: Array) -> tuple[NDArray[np.int64], Array]:
    """Return how the others are turned to be most like the images, and their correlation then.

    Args:
        images: Shape (P, S, S).
        others: Of the same shape.

    Returns:
        Turns, shape (P,), and correlations in [-1, 1], shape (P,).
    """
    flat = _normalise(images)
    found = np.stack(
        [
            (flat * _normalise(apply_orientation(others, turn))).sum(axis=1)
            for turn in range(NUM_ORIENTATIONS)
        ]
    )
    return found.argmax(axis=0), found.max(axis=0)


def build_identity_warp(count: int) -> Array:
    """Return the placing (P, 4) of images that are neither stretched nor shifted."""
    return np.tile(np.array([1, 0, 1, 0], np.float32), (count, 1))


def align(
    images: Array,
    others: Array,
    *,
    steps: int,
    bounds: AlignmentBounds = DEFAULT_BOUNDS,
    initial_warp: Array | None = None,
) -> Alignment:
    """Return how each of the others is stretched and shifted to lie on its image.

    Gauss-Newton on both axes, with brightness and contrast (Lucas and Kanade 1981; Baker and
    Matthews 2004, https://doi.org/10.1023/B:VISI.0000011205.11775.fd); the best of all steps.

    Args:
        images: Shape (P, S, S).
        others: Of the same shape, turned as the images are.
        steps: How many.
        bounds: No placing goes farther.
        initial_warp: Where to begin; None begins with the others as they are.
    """
    count, side, _ = images.shape
    place = build_identity_warp(count) if initial_warp is None else initial_warp.copy()
    if not count:
        return Alignment(place, np.empty(0, np.float32))
    best, least = place.copy(), np.full(count, np.inf, np.float32)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    half = (side - 1) / 2
    slopes = [np.gradient(others, axis=number).astype(np.float32) * half for number in (1, 2)]
    for step in range(steps + 1):
        down = _build_interpolation_matrices(place[:, 0:1] * axis + place[:, 1:2], side)
        across = _build_interpolation_matrices(
            place[:, 2:3] * axis + place[:, 3:4], side
        ).transpose(0, 2, 1)
        placed = _warp_images(others, down, across)
        inside: Array = (
            _compute_inside_mask(down.sum(axis=2))[:, :, None]
            * _compute_inside_mask(across.sum(axis=1))[:, None]
        )
        inside = _mask_clipped_pixels(inside, images, placed)
        area: Array = inside.sum(axis=(1, 2))
        image, moved = (_subtract_mean(part, inside, area) for part in (images, placed))
        gain = _divide(_dot(image, moved), np.maximum(_dot(moved, moved), 1e-6))
        rest: Array = image - gain[:, None, None] * moved
        error = _divide(_dot(rest, rest), area)
        closer = error < least
        best[closer], least[closer] = place[closer], error[closer]
        if step == steps:
            break
        slope_down, slope_across = (
            _warp_images(slope, down, across) * inside * gain[:, None, None] for slope in slopes
        )
        columns = (
            slope_down * axis[:, None], slope_down, slope_across * axis, slope_across, moved, inside
        )  # fmt: skip
        place += _solve_gauss_newton_step(np.stack(columns, axis=-1), rest)
        place[:, 0::2] = np.clip(place[:, 0::2], 1 / bounds.max_scale, bounds.max_scale)
        place[:, 1::2] = np.clip(place[:, 1::2], -bounds.max_shift, bounds.max_shift)
    detail = np.minimum(_compute_detail(images), _compute_detail(others))
    noisy: Array = np.add(detail, _NOISE_VARIANCE, dtype=np.float32)
    return Alignment(best, _divide(least, noisy))


def _build_interpolation_matrices(centres: Array, side: int) -> Array:
    """Return what takes pixels at some centres in [-1, 1] (P, S) from a line, shape (P, S, S)."""
    places = (centres + 1) * ((side - 1) / 2)
    distance = np.abs(places[:, :, None] - np.arange(side, dtype=np.float32))
    weights: Array = np.maximum(0, 1 - distance).astype(np.float32)
    return weights


def _warp_images(images: Array, down: Array, across: Array) -> Array:
    placed: Array = np.matmul(np.matmul(down, images), across)
    return placed


def _compute_inside_mask(coverage: Array) -> Array:
    return (coverage > 0.999).astype(np.float32)


def _mask_clipped_pixels(mask: Array, images: Array, warped: Array) -> Array:
    """Return which pixels say something: not what one image shows as white, if enough is left."""
    known: Array = mask * (images < _WHITE_LEVEL) * (warped < _WHITE_LEVEL)
    enough = known.sum(axis=(1, 2)) >= _MIN_VALID_FRACTION * mask.sum(axis=(1, 2))
    return np.where(enough[:, None, None], known, mask).astype(np.float32)


def _subtract_mean(images: Array, mask: Array, area: Array) -> Array:
    mean = _divide((images * mask).sum(axis=(1, 2)), area)
    centred: Array = (images - mean[:, None, None]) * mask
    return centred


def _divide(numerator: Array, denominator: Array) -> Array:
    quotient: Array = np.divide(numerator, denominator, dtype=np.float32)
    return quotient


def _dot(one: Array, other: Array) -> Array:
    product: Array = np.einsum("pij,pij->p", one, other)
    return product


def _solve_gauss_newton_step(jacobian: Array, residual: Array) -> Array:
    """Return the step of the first four unknowns, (P, 4), for the least squares of what is left."""
    count = len(jacobian)
    table = jacobian.reshape(count, -1, jacobian.shape[-1])
    normal = table.transpose(0, 2, 1) @ table
    damping = 1e-5 * np.trace(normal, axis1=1, axis2=2) / 6 + 1e-6
    normal += damping[:, None, None] * np.eye(6, dtype=np.float32)
    sums = np.einsum("pnk,pn->pk", table, residual.reshape(count, -1))
    step: Array = np.linalg.solve(normal, sums[..., None])[:, :4, 0]
    return np.clip(step, -0.1, 0.1)


def _compute_detail(images: Array) -> Array:
    """Return the mean squared difference of images from their coarse parts, shape (P,)."""
    width = images.shape[1] / _DETAIL_DIVISOR
    fine = images - gaussian_filter(images, (0, width, width), mode="reflect")
    detail: Array = np.square(fine).mean(axis=(1, 2))
    return detail


def _normalise(images: Array) -> Array:
    flat = images.reshape(len(images), images.shape[1] * images.shape[2])
    flat = flat - flat.mean(axis=1, keepdims=True)
    unit: Array = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return unit
