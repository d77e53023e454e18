"""Descriptors and alignment of images, invariant to turns, flips, crops, brightness and contrast.

Images are grey levels in [0, 255], resized to squares of S x S pixels without regard to their
aspect ratio. A crop is then a scale and a shift along each axis, which ``align`` estimates. The
remaining difference is relative to the detail of the images, so that two photos of different
objects on one empty table do not match.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]
# P pairs or images, S pixels a side

NUM_ORIENTATIONS = 8
"""Number of orientations of a square: four turns, each also flipped."""

_NUM_FREQUENCIES = 5

_NOISE_VARIANCE = 4.0
"""Upper estimate of the variance that lossy compression adds, in squared grey levels."""

_WHITE_LEVEL = 250.0
"""Grey level from which a brightened duplicate may be clipped."""

_MIN_VALID_FRACTION = 0.4

_DETAIL_DIVISOR = 8
"""Detail is what a Gaussian blur of a side over this number removes."""


class AlignmentBounds(NamedTuple):
    """Bounds of the warp between the images of a pair.

    Attributes:
        max_scale: Largest scale along an axis; its inverse is the smallest.
        max_shift: Largest shift along an axis, in half sides.
    """

    max_scale: float
    max_shift: float


DEFAULT_BOUNDS = AlignmentBounds(max_scale=1.18, max_shift=0.2)
"""Bounds of crops by up to 10%, with a margin."""


class Alignment(NamedTuple):
    """Alignment of the second image of each pair with the first.

    Attributes:
        warp: Vertical scale and shift, horizontal scale and shift, shape (P, 4); shifts in half
            sides.
        difference: Mean squared difference after alignment and adjustment of brightness and
            contrast, as a fraction of the mean squared detail of the less detailed image, shape
            (P,).
    """

    warp: Array
    difference: Array


def compute_descriptors(images: Array) -> Array:
    """Compute global descriptors that are invariant to turns, flips, brightness and contrast.

    They are the amplitudes of the lowest frequencies, as in perceptual hashes, but as numbers
    instead of bits. Turns and flips change their signs and exchange the vertical with the
    horizontal ones, so that the sums and the absolute differences of the two are taken.

    Args:
        images: Shape (P, S, S).

    Returns:
        Shape (P, 24).
    """
    flat = images.reshape(len(images), images.shape[1] * images.shape[2])
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(flat.std(axis=1, keepdims=True), 1e-6)
    side = images.shape[1]
    spectrum = dctn(flat.reshape(images.shape), axes=(1, 2), norm="ortho") / side
    amplitudes = np.abs(spectrum[:, :_NUM_FREQUENCIES, :_NUM_FREQUENCIES])
    down, across = np.triu_indices(_NUM_FREQUENCIES, k=1)
    one, other = amplitudes[:, down, across], amplitudes[:, across, down]
    diagonal = np.arange(1, _NUM_FREQUENCIES)
    blocks = (
        amplitudes[:, diagonal, diagonal],
        (one + other) / 2**0.5,
        np.abs(one - other) / 2**0.5,
    )
    return np.concatenate(blocks, axis=1).astype(np.float32)


def apply_orientation(images: Array, orientation: int) -> Array:
    """Return images (P, S, S) in one of the ``NUM_ORIENTATIONS`` orientations.

    Bits of the orientation: 4 transposes, then 2 flips vertically and 1 horizontally.
    """
    if orientation & 4:
        images = images.transpose(0, 2, 1)
    return images[:, :: -1 if orientation & 2 else 1, :: -1 if orientation & 1 else 1]


def find_best_orientations(images: Array, others: Array) -> tuple[NDArray[np.int64], Array]:
    """Return the orientations of the second images in which they correlate most with the first.

    Args:
        images: First image of each pair, shape (P, S, S).
        others: Second image of each pair, of the same shape.

    Returns:
        Orientations, shape (P,), and correlations in [-1, 1], shape (P,).
    """
    flat = _normalise(images)
    correlations = np.stack(
        [
            (flat * _normalise(apply_orientation(others, orientation))).sum(axis=1)
            for orientation in range(NUM_ORIENTATIONS)
        ]
    )
    return correlations.argmax(axis=0), correlations.max(axis=0)


def build_identity_warp(count: int) -> Array:
    """Return warps (P, 4) that neither scale nor shift."""
    return np.tile(np.array([1, 0, 1, 0], np.float32), (count, 1))


def align(
    images: Array,
    others: Array,
    *,
    steps: int,
    bounds: AlignmentBounds = DEFAULT_BOUNDS,
    initial_warp: Array | None = None,
) -> Alignment:
    """Align the second image of each pair with the first by scales and shifts.

    Gauss-Newton steps on both axes, with brightness and contrast (Lucas and Kanade 1981; Baker and
    Matthews 2004, https://doi.org/10.1023/B:VISI.0000011205.11775.fd); the best step is returned.

    Args:
        images: First image of each pair, shape (P, S, S).
        others: Second image of each pair in the orientation of the first, of the same shape.
        steps: Number of steps.
        bounds: Bounds of the scales and shifts.
        initial_warp: Warp to begin with, shape (P, 4); None begins with the identity.
    """
    count, side, _ = images.shape
    warp = build_identity_warp(count) if initial_warp is None else initial_warp.copy()
    if not count:
        return Alignment(warp, np.empty(0, np.float32))
    best, least = warp.copy(), np.full(count, np.inf, np.float32)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    half = (side - 1) / 2
    slopes = [np.gradient(others, axis=number).astype(np.float32) * half for number in (1, 2)]
    for step in range(steps + 1):
        down = _build_interpolation_matrices(warp[:, 0:1] * axis + warp[:, 1:2], side)
        across = _build_interpolation_matrices(warp[:, 2:3] * axis + warp[:, 3:4], side).transpose(
            0, 2, 1
        )
        warped = _warp_images(others, down, across)
        inside: Array = (
            _compute_inside_mask(down.sum(axis=2))[:, :, None]
            * _compute_inside_mask(across.sum(axis=1))[:, None]
        )
        inside = _mask_clipped_pixels(inside, images, warped)
        area: Array = inside.sum(axis=(1, 2))
        target, source = (_subtract_mean(each, inside, area) for each in (images, warped))
        gain = _divide(_dot(target, source), np.maximum(_dot(source, source), 1e-6))
        residual: Array = target - gain[:, None, None] * source
        error = _divide(_dot(residual, residual), area)
        is_better = error < least
        best[is_better], least[is_better] = warp[is_better], error[is_better]
        if step == steps:
            break
        slope_down, slope_across = (
            _warp_images(slope, down, across) * inside * gain[:, None, None] for slope in slopes
        )
        columns = (
            slope_down * axis[:, None], slope_down, slope_across * axis, slope_across,
            source, inside,
        )  # fmt: skip
        warp += _solve_gauss_newton_step(np.stack(columns, axis=-1), residual)
        warp[:, 0::2] = np.clip(warp[:, 0::2], 1 / bounds.max_scale, bounds.max_scale)
        warp[:, 1::2] = np.clip(warp[:, 1::2], -bounds.max_shift, bounds.max_shift)
    detail = np.minimum(_compute_detail(images), _compute_detail(others))
    scale: Array = np.add(detail, _NOISE_VARIANCE, dtype=np.float32)
    return Alignment(best, _divide(least, scale))


def _build_interpolation_matrices(centres: Array, side: int) -> Array:
    """Build matrices (P, S, S) that interpolate a line of pixels at centres (P, S) in [-1, 1]."""
    positions = (centres + 1) * ((side - 1) / 2)
    distance = np.abs(positions[:, :, None] - np.arange(side, dtype=np.float32))
    weights: Array = np.maximum(0, 1 - distance).astype(np.float32)
    return weights


def _warp_images(images: Array, down: Array, across: Array) -> Array:
    warped: Array = np.matmul(np.matmul(down, images), across)
    return warped


def _compute_inside_mask(coverage: Array) -> Array:
    return (coverage > 0.999).astype(np.float32)


def _mask_clipped_pixels(mask: Array, images: Array, warped: Array) -> Array:
    """Return the mask without pixels that are white in one image, unless too few would remain."""
    unclipped: Array = mask * (images < _WHITE_LEVEL) * (warped < _WHITE_LEVEL)
    is_enough = unclipped.sum(axis=(1, 2)) >= _MIN_VALID_FRACTION * mask.sum(axis=(1, 2))
    return np.where(is_enough[:, None, None], unclipped, mask).astype(np.float32)


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
    """Return the least-squares step of the first four of six unknowns, shape (P, 4)."""
    count = len(jacobian)
    table = jacobian.reshape(count, -1, jacobian.shape[-1])
    normal = table.transpose(0, 2, 1) @ table
    damping = 1e-5 * np.trace(normal, axis1=1, axis2=2) / 6 + 1e-6
    normal += damping[:, None, None] * np.eye(6, dtype=np.float32)
    sums = np.einsum("pnk,pn->pk", table, residual.reshape(count, -1))
    step: Array = np.linalg.solve(normal, sums[..., None])[:, :4, 0]
    return np.clip(step, -0.1, 0.1)


def _compute_detail(images: Array) -> Array:
    """Compute the mean squared difference of images from their blurred versions, shape (P,)."""
    width = images.shape[1] / _DETAIL_DIVISOR
    fine = images - gaussian_filter(images, (0, width, width), mode="reflect")
    detail: Array = np.square(fine).mean(axis=(1, 2))
    return detail


def _normalise(images: Array) -> Array:
    flat = images.reshape(len(images), images.shape[1] * images.shape[2])
    flat = flat - flat.mean(axis=1, keepdims=True)
    unit: Array = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return unit
