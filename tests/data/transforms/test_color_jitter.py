"""The colour matrices do what torchvision's functions do, one after the other."""

import colorsys
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import functional

from finetune.data.transforms.color_jitter import ColorJitter, ColorMatrix
from tests.support.helpers import noise, smooth

Floats = NDArray[np.float64]
GREY = np.array([0.299, 0.587, 0.114])
NO_JITTER = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "p": 1.0}
LEVEL = 1 / 255


def jitter(**reaches: float) -> ColorJitter:
    return ColorJitter(**{**NO_JITTER, **reaches})


def middling(seed: int = 0) -> NDArray[np.uint8]:
    """Return an image of reddish grey, which no change below drives to black or white."""
    tint = np.array([120, 100, 85], np.uint8)
    return np.asarray(noise(seed=seed, width=20, height=15)) // 5 + tint


def drawn(jitter: ColorJitter, pixels: NDArray[np.uint8], seed: int = 0) -> ColorMatrix:
    return jitter.sample_matrix(pixels, np.random.default_rng(seed))


def applied(matrix: ColorMatrix, pixels: NDArray[np.uint8]) -> Floats:
    """Return the colours of an image, in [0, 1], by a loop over its pixels."""
    changed = np.empty(pixels.shape)
    for row, column in np.ndindex(pixels.shape[:2]):
        for out in range(3):
            value = float(matrix[out, 3])
            for channel in range(3):
                value += float(matrix[out, channel]) * int(pixels[row, column, channel]) / 255
            changed[row, column, out] = value
    return changed


def by_torchvision(pixels: NDArray[np.uint8], **factors: float) -> Floats:
    """Return what torchvision's functions make of an image in the order of ``factors``."""
    image = torch.from_numpy(pixels / 255).permute(2, 0, 1)
    for name, factor in factors.items():
        changed = getattr(functional, f"adjust_{name}")(image, factor)
        assert 0 < changed.min() <= changed.max() < 1, "nothing may be clipped"
        image = changed
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("seed", range(5))
def test_brightness_is_torchvisions(seed: int) -> None:
    matrix = drawn(jitter(brightness=0.4), pixels := middling(), seed)
    factor = float(matrix[0, 0])
    assert 0.6 <= factor <= 1.4
    assert abs(factor - 1) > 1e-3
    expected = by_torchvision(pixels, brightness=factor)
    np.testing.assert_allclose(applied(matrix, pixels), expected, atol=LEVEL)


@pytest.mark.parametrize("seed", range(5))
def test_contrast_is_torchvisions(seed: int) -> None:
    matrix = drawn(jitter(contrast=0.4), pixels := middling(), seed)
    factor = float(matrix[0, 0])
    assert 0.6 <= factor <= 1.4
    assert abs(factor - 1) > 1e-3
    expected = by_torchvision(pixels, contrast=factor)
    np.testing.assert_allclose(applied(matrix, pixels), expected, atol=LEVEL)


@pytest.mark.parametrize("seed", range(5))
def test_saturation_is_torchvisions(seed: int) -> None:
    matrix = drawn(jitter(saturation=0.4), pixels := middling(), seed)
    factor = 1 - float(matrix[0, 1]) / GREY[1]
    assert 0.6 <= factor <= 1.4
    assert abs(factor - 1) > 1e-3
    expected = by_torchvision(pixels, saturation=factor)
    np.testing.assert_allclose(applied(matrix, pixels), expected, atol=LEVEL)


@pytest.mark.parametrize("seed", range(10))
def test_together_they_are_torchvisions_one_after_the_other(seed: int) -> None:
    pixels = middling(seed)
    matrix = drawn(jitter(brightness=0.3, contrast=0.3, saturation=0.3), pixels, seed).astype(float)
    grey = float((pixels / 255 @ GREY).mean())
    # grey becomes contrast * brightness * grey + (1 - contrast) * brightness * mean
    slope, shift = float(matrix[0, :3].sum()), float(matrix[0, 3])
    brightness = slope + shift / grey
    contrast = slope / brightness
    saturation = 1 - float(matrix[0, 1]) / slope / GREY[1]
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    assert all(0.7 <= factor <= 1.3 for factor in factors.values())
    assert len({round(factor, 3) for factor in (*factors.values(), 1.0)}) == 4
    expected = by_torchvision(pixels, **factors)
    np.testing.assert_allclose(applied(matrix, pixels), expected, atol=LEVEL)


def test_a_hue_turn_leaves_grey_and_lightness_alone() -> None:
    pixels = middling()
    grey = np.stack([pixels[..., 0]] * 3, -1)
    for seed in range(10):
        matrix = drawn(jitter(hue=0.5), pixels, seed)
        np.testing.assert_allclose(applied(matrix, grey), grey / 255, atol=1e-6)
        turned = applied(matrix, pixels)
        np.testing.assert_allclose(turned @ GREY, pixels / 255 @ GREY, atol=1e-6)
        assert abs(turned - pixels / 255).max() > 0.01


def angle(colour: Floats) -> float:
    """Return the direction of a colour in the plane of YIQ, by the standard library."""
    _, first, second = colorsys.rgb_to_yiq(*map(float, colour))
    return math.atan2(second, first)


@pytest.mark.parametrize("hue", [0.03, 0.25])
def test_a_hue_turns_as_far_as_is_allowed_both_ways_and_every_colour_alike(hue: float) -> None:
    red, blue = np.array([[[180, 90, 90]]], np.uint8), np.array([[[90, 110, 170]]], np.uint8)
    turns = []
    for seed in range(300):
        matrix = drawn(jitter(hue=hue), red, seed)
        both = []
        for colour in (red, blue):
            change = angle(applied(matrix, colour)[0, 0]) - angle(colour[0, 0] / 255)
            both.append((change / math.tau + 0.5) % 1 - 0.5)
        # the standard library rounds its coefficients
        assert both[0] == pytest.approx(both[1], abs=0.02)
        turns.append(both[0])
    assert -1.05 * hue < min(turns) < -0.9 * hue
    assert 0.9 * hue < max(turns) < 1.05 * hue
    assert abs(float(np.mean(turns))) < 0.2 * hue


def test_half_a_turn_is_the_colour_across() -> None:
    class Last(np.random.Generator):
        """Draws the largest numbers that there are."""

        def random(self, size: int) -> Floats:  # type: ignore[override]
            return np.full(size, 1 - 1e-12)

    pixels = middling()
    half = ColorJitter(**{**NO_JITTER, "hue": 0.5, "p": 1.0})
    turned = applied(half.sample_matrix(pixels, Last(np.random.Philox())), pixels)
    lightness = (pixels / 255 @ GREY)[..., None]
    np.testing.assert_allclose(turned, 2 * lightness - pixels / 255, atol=1e-5)


def test_nothing_is_changed_without_reach_or_by_chance() -> None:
    pixels = middling()
    strong = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    for still in (jitter(), jitter(**strong, p=0.0)):
        for seed in range(20):
            np.testing.assert_allclose(drawn(still, pixels, seed), np.eye(3, 4), atol=1e-6)


@pytest.mark.parametrize(("p", "grayscale_p"), [(0.5, 0.0), (0.5, 0.5), (1.0, 1.0), (0.0, 0.3)])
def test_chances_are_kept_and_independent(p: float, grayscale_p: float) -> None:
    pixels = middling()
    shaky = jitter(brightness=0.4, saturation=0.2, p=p, grayscale_p=grayscale_p)
    counts = {(changed, grey): 0 for changed in (False, True) for grey in (False, True)}
    for seed in range(1000):
        matrix = drawn(shaky, pixels, seed)
        grey = np.allclose(matrix[0], matrix[1]) and np.allclose(matrix[1], matrix[2])
        changed = not np.isclose(float(matrix[0, :3].sum()), 1)
        counts[changed, bool(grey)] += 1
    for (changed, grey), count in counts.items():
        share = (p if changed else 1 - p) * (grayscale_p if grey else 1 - grayscale_p)
        assert abs(count - 1000 * share) <= 5 * (1000 * share * (1 - share)) ** 0.5


def test_an_image_without_colour_has_equal_channels_of_the_same_lightness() -> None:
    pixels = middling()
    matrix = drawn(jitter(p=0.0, grayscale_p=1.0), pixels)
    image = torch.from_numpy(pixels / 255).permute(2, 0, 1)
    expected = functional.rgb_to_grayscale(image, num_output_channels=3).permute(1, 2, 0).numpy()
    found = applied(matrix, pixels)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_array_equal(found[..., 0], found[..., 1])
    np.testing.assert_array_equal(found[..., 0], found[..., 2])


def test_a_matrix_is_a_pure_function_of_image_and_draw() -> None:
    shaky = ColorJitter(0.4, 0.4, 0.4, 0.05, p=0.8, grayscale_p=0.1)
    pixels = middling()
    matrices = [drawn(shaky, pixels, seed) for seed in range(50)]
    assert {(matrix.shape, str(matrix.dtype)) for matrix in matrices} == {((3, 4), "float32")}
    for seed, matrix in reversed(list(enumerate(matrices))):
        np.testing.assert_array_equal(drawn(shaky, pixels, seed), matrix)
    assert len({matrix.tobytes() for matrix in matrices}) > 35


def test_each_image_takes_equally_many_numbers_from_the_generator() -> None:
    pixels = np.asarray(smooth(width=16, height=16))
    left = set()
    for p in (0.0, 0.5, 1.0):
        generator = np.random.default_rng(3)
        for _ in range(8):
            jitter(brightness=0.2, p=p, grayscale_p=1 - p).sample_matrix(pixels, generator)
        left.add(float(generator.random()))
    assert len(left) == 1
