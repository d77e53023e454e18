"""Descriptors and alignment are invariant to turns, brightness, contrast and crops."""

import numpy as np
import pytest
from PIL import Image

from finetune.audit.image_alignment import (
    NUM_ORIENTATIONS,
    Array,
    align,
    apply_orientation,
    build_identity_warp,
    compute_descriptors,
    find_best_orientations,
)
from tests.support.pictures import create_scene

FINE = 0.08
"""Largest difference of duplicates in the finest stage."""


def pixels(image: Image.Image, side: int) -> Array:
    return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX), np.float32)


def scenes(count: int, *, side: int, first: int = 0) -> Array:
    return np.stack([pixels(create_scene(seed + first), side) for seed in range(count)])


def crop(seed: int, *, left: float, top: float, fraction: float, side: int = 64) -> Array:
    """Return a crop of a scene; its position and size are fractions of the whole."""
    image = create_scene(seed, width=640, height=480)
    x, y = left * image.width, top * image.height
    box = (x, y, x + fraction * image.width, y + fraction * image.height)
    resized = image.resize((256, 256), Image.Resampling.BICUBIC, box=box)
    return pixels(resized, side)[None]


def test_apply_orientation_gives_all_turns_and_flips() -> None:
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    expected = {
        np.rot90(part, number).tobytes() for part in (image[0], image[0].T) for number in range(4)
    }
    found = {
        np.ascontiguousarray(apply_orientation(image, orientation)[0]).tobytes()
        for orientation in range(NUM_ORIENTATIONS)
    }
    assert found == expected
    np.testing.assert_array_equal(apply_orientation(image, 0), image)


@pytest.mark.parametrize("orientation", range(NUM_ORIENTATIONS))
def test_compute_descriptors_invariant_to_turns_brightness_contrast(orientation: int) -> None:
    images = scenes(5, side=32)
    descriptors = compute_descriptors(images)
    assert descriptors.shape == (5, 24)
    assert descriptors.dtype == np.float32
    np.testing.assert_allclose(
        compute_descriptors(apply_orientation(images, orientation)), descriptors, atol=1e-5
    )
    np.testing.assert_allclose(compute_descriptors(0.5 * images + 40), descriptors, atol=1e-5)


def test_compute_descriptors_different_images_differ() -> None:
    descriptors = compute_descriptors(scenes(12, side=32))
    apart = np.linalg.norm(descriptors[:, None] - descriptors[None], axis=2)[
        ~np.eye(12, dtype=bool)
    ]
    noisy = scenes(12, side=32) + np.random.default_rng(0).normal(0, 3, (12, 32, 32))
    near = np.linalg.norm(compute_descriptors(noisy.astype(np.float32)) - descriptors, axis=1)
    assert near.max() < apart.min() / 2


def test_compute_descriptors_blank_image_is_finite() -> None:
    assert np.isfinite(compute_descriptors(np.full((1, 32, 32), 9, np.float32))).all()


@pytest.mark.parametrize("orientation", range(NUM_ORIENTATIONS))
def test_find_best_orientations_finds_each(orientation: int) -> None:
    images = scenes(4, side=16)
    others = np.empty_like(images)
    for number in range(NUM_ORIENTATIONS):
        # reference: the orientation that undoes another one, found by trying all
        if np.array_equal(
            apply_orientation(apply_orientation(images, orientation), number), images
        ):
            others = apply_orientation(images, orientation)
            undone = number
    found, correlation = find_best_orientations(images, others)
    assert found.tolist() == [undone] * 4
    np.testing.assert_allclose(correlation, 1, atol=1e-5)


def test_find_best_orientations_different_images_correlate_little() -> None:
    _, correlation = find_best_orientations(scenes(8, side=16), scenes(8, side=16, first=100))
    assert correlation.max() < 0.9
    assert np.median(correlation) < 0.6


@pytest.mark.parametrize(
    ("left", "top", "fraction"),
    [(0, 0, 0.9), (0.1, 0.1, 0.9), (0.05, 0.05, 0.9), (0, 0.08, 0.92), (0.04, 0.02, 0.95)],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_align_crop_recovers_scale_and_shift(
    seed: int, left: float, top: float, fraction: float
) -> None:
    whole, part = (
        crop(seed, left=0, top=0, fraction=1),
        crop(seed, left=left, top=top, fraction=fraction),
    )
    found = align(part, whole, steps=12)
    assert found.difference[0] < FINE / 2
    # the crop's point u in [-1, 1] is at scale * u + shift in the whole
    expected = [fraction, 2 * top + fraction - 1, fraction, 2 * left + fraction - 1]
    np.testing.assert_allclose(found.warp[0], expected, atol=0.02)
    assert align(whole, part, steps=12).difference[0] < FINE / 2
    assert align(part, whole, steps=0).difference[0] > found.difference[0]


@pytest.mark.parametrize("gain", [0.6, 1.4])
def test_align_ignores_brightness_and_contrast(gain: float) -> None:
    images = scenes(4, side=64)
    found = align(images, gain * images - 20, steps=4)
    assert found.difference.max() < 0.01
    np.testing.assert_allclose(found.warp, build_identity_warp(4), atol=0.01)


def test_align_different_images_stay_different() -> None:
    images = scenes(10, side=64)
    found = align(images, np.roll(images, 1, axis=0), steps=4)
    assert found.difference.min() > 3 * FINE


def test_align_initial_warp_continues_an_alignment() -> None:
    whole, part = crop(4, left=0, top=0, fraction=1), crop(4, left=0.1, top=0, fraction=0.9)
    some = align(part, whole, steps=2)
    before = some.warp.copy()
    more = align(part, whole, steps=3, initial_warp=some.warp)
    assert more.difference[0] <= some.difference[0]
    np.testing.assert_array_equal(some.warp, before)


def test_align_pairs_are_independent() -> None:
    whole = scenes(6, side=64)
    part = np.concatenate([crop(seed, left=0.05, top=0.02, fraction=0.93) for seed in range(6)])
    together = align(part, whole, steps=4)
    for row in range(6):
        alone = align(part[row : row + 1], whole[row : row + 1], steps=4)
        np.testing.assert_allclose(together.warp[row], alone.warp[0], atol=1e-3)
        np.testing.assert_allclose(together.difference[row], alone.difference[0], atol=1e-3)


def test_align_and_descriptors_accept_no_images() -> None:
    nothing = np.empty((0, 32, 32), np.float32)
    assert compute_descriptors(nothing).shape == (0, 24)
    assert apply_orientation(nothing, 5).shape == (0, 32, 32)
    assert find_best_orientations(nothing, nothing)[0].shape == (0,)
    found = align(nothing, nothing, steps=3)
    assert found.warp.shape == (0, 4)
    assert found.difference.shape == (0,)


def test_align_blank_images_are_finite() -> None:
    blank = np.full((2, 64, 64), 128, np.float32)
    found = align(blank, scenes(2, side=64), steps=4)
    assert np.isfinite(found.difference).all()
    assert np.isfinite(found.warp).all()
