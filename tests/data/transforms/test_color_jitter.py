"""Tests of color matrices against torchvision's functions."""

import colorsys
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import functional

from finetune.data.transforms.color_jitter import ColorJitter, ColorMatrix
from tests.support.helpers import create_noise, create_smooth_image

Floats = NDArray[np.float64]
GRAY = np.array([0.299, 0.587, 0.114])
NO_JITTER = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "p": 1.0}
LEVEL = 1 / 255


def make_jitter(**extents: float) -> ColorJitter:
    return ColorJitter(**{**NO_JITTER, **extents})


def make_reddish_gray(seed: int = 0) -> NDArray[np.uint8]:
    """Return an image of reddish gray, which no change below clips."""
    tint = np.array([120, 100, 85], np.uint8)
    return np.asarray(create_noise(seed=seed, width=20, height=15)) // 5 + tint


def sample_matrix(jitter: ColorJitter, pixels: NDArray[np.uint8], seed: int = 0) -> ColorMatrix:
    return jitter.sample_matrix(pixels, np.random.default_rng(seed))


def apply_matrix(matrix: ColorMatrix, pixels: NDArray[np.uint8]) -> Floats:
    """Return the changed colors of an image, in [0, 1], by a loop over its pixels."""
    changed = np.empty(pixels.shape)
    for row, column in np.ndindex(pixels.shape[:2]):
        for out in range(3):
            value = float(matrix[out, 3])
            for channel in range(3):
                value += float(matrix[out, channel]) * int(pixels[row, column, channel]) / 255
            changed[row, column, out] = value
    return changed


def adjust_with_torchvision(pixels: NDArray[np.uint8], **factors: float) -> Floats:
    """Return an image changed by torchvision's functions in the order of ``factors``."""
    image = torch.from_numpy(pixels / 255).permute(2, 0, 1)
    for name, factor in factors.items():
        changed = getattr(functional, f"adjust_{name}")(image, factor)
        assert 0 < changed.min() <= changed.max() < 1, "nothing may be clipped"
        image = changed
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("seed", range(5))
def test_brightness_equals_torchvision(seed: int) -> None:
    matrix = sample_matrix(make_jitter(brightness=0.4), pixels := make_reddish_gray(), seed)
    factor = float(matrix[0, 0])
    assert 0.6 <= factor <= 1.4
    assert abs(factor - 1) > 1e-3
    expected = adjust_with_torchvision(pixels, brightness=factor)
    np.testing.assert_allclose(apply_matrix(matrix, pixels), expected, atol=LEVEL)


@pytest.mark.parametrize("seed", range(5))
def test_contrast_equals_torchvision(seed: int) -> None:
    matrix = sample_matrix(make_jitter(contrast=0.4), pixels := make_reddish_gray(), seed)
    factor = float(matrix[0, 0])
    assert 0.6 <= factor <= 1.4
    assert abs(factor - 1) > 1e-3
    expected = adjust_with_torchvision(pixels, contrast=factor)
    np.testing.assert_allclose(apply_matrix(matrix, pixels), expected, atol=LEVEL)


@pytest.mark.parametrize("seed", range(5))
def test_saturation_equals_torchvision(seed: int) -> None:
    matrix = sample_matrix(make_jitter(saturation=0.4), pixels := make_reddish_gray(), seed)
    factor = 1 - float(matrix[0, 1]) / GRAY[1]
    assert 0.6 <= factor <= 1.4
    assert abs(factor - 1) > 1e-3
    expected = adjust_with_torchvision(pixels, saturation=factor)
    np.testing.assert_allclose(apply_matrix(matrix, pixels), expected, atol=LEVEL)


@pytest.mark.parametrize("seed", range(10))
def test_jitter_composition_equals_torchvision(seed: int) -> None:
    pixels = make_reddish_gray(seed)
    matrix = sample_matrix(
        make_jitter(brightness=0.3, contrast=0.3, saturation=0.3), pixels, seed
    ).astype(float)
    gray = float((pixels / 255 @ GRAY).mean())
    # gray becomes contrast * brightness * gray + (1 - contrast) * brightness * mean
    slope, shift = float(matrix[0, :3].sum()), float(matrix[0, 3])
    brightness = slope + shift / gray
    contrast = slope / brightness
    saturation = 1 - float(matrix[0, 1]) / slope / GRAY[1]
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    assert all(0.7 <= factor <= 1.3 for factor in factors.values())
    assert len({round(factor, 3) for factor in (*factors.values(), 1.0)}) == 4
    expected = adjust_with_torchvision(pixels, **factors)
    np.testing.assert_allclose(apply_matrix(matrix, pixels), expected, atol=LEVEL)


def test_hue_keeps_gray_and_lightness() -> None:
    pixels = make_reddish_gray()
    gray = np.stack([pixels[..., 0]] * 3, -1)
    for seed in range(10):
        matrix = sample_matrix(make_jitter(hue=0.5), pixels, seed)
        np.testing.assert_allclose(apply_matrix(matrix, gray), gray / 255, atol=1e-6)
        turned = apply_matrix(matrix, pixels)
        np.testing.assert_allclose(turned @ GRAY, pixels / 255 @ GRAY, atol=1e-6)
        assert abs(turned - pixels / 255).max() > 0.01


def get_hue_angle(color: Floats) -> float:
    """Return the angle of a color in the IQ plane of YIQ, by the standard library."""
    _, first, second = colorsys.rgb_to_yiq(*map(float, color))
    return math.atan2(second, first)


@pytest.mark.parametrize("hue", [0.03, 0.25])
def test_hue_rotation_is_uniform_within_limits_and_same_for_all_colors(hue: float) -> None:
    red, blue = np.array([[[180, 90, 90]]], np.uint8), np.array([[[90, 110, 170]]], np.uint8)
    turns = []
    for seed in range(300):
        matrix = sample_matrix(make_jitter(hue=hue), red, seed)
        both = []
        for color in (red, blue):
            change = get_hue_angle(apply_matrix(matrix, color)[0, 0]) - get_hue_angle(
                color[0, 0] / 255
            )
            both.append((change / math.tau + 0.5) % 1 - 0.5)
        # the standard library rounds its coefficients
        assert both[0] == pytest.approx(both[1], abs=0.02)
        turns.append(both[0])
    assert -1.05 * hue < min(turns) < -0.9 * hue
    assert 0.9 * hue < max(turns) < 1.05 * hue
    assert abs(float(np.mean(turns))) < 0.2 * hue


def test_hue_half_turn_gives_opposite_color() -> None:
    class LargestGenerator(np.random.Generator):
        """Generator of the largest numbers below 1."""

        def random(self, size: int) -> Floats:  # type: ignore[override]
            return np.full(size, 1 - 1e-12)

    pixels = make_reddish_gray()
    half = ColorJitter(**{**NO_JITTER, "hue": 0.5, "p": 1.0})
    turned = apply_matrix(half.sample_matrix(pixels, LargestGenerator(np.random.Philox())), pixels)
    lightness = (pixels / 255 @ GRAY)[..., None]
    np.testing.assert_allclose(turned, 2 * lightness - pixels / 255, atol=1e-5)


def test_jitter_without_extent_or_probability_is_identity() -> None:
    pixels = make_reddish_gray()
    strong = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    for still in (make_jitter(), make_jitter(**strong, p=0.0)):
        for seed in range(20):
            np.testing.assert_allclose(sample_matrix(still, pixels, seed), np.eye(3, 4), atol=1e-6)


@pytest.mark.parametrize(("p", "grayscale_p"), [(0.5, 0.0), (0.5, 0.5), (1.0, 1.0), (0.0, 0.3)])
def test_jitter_probabilities_are_independent(p: float, grayscale_p: float) -> None:
    pixels = make_reddish_gray()
    shaky = make_jitter(brightness=0.4, saturation=0.2, p=p, grayscale_p=grayscale_p)
    counts = {(changed, gray): 0 for changed in (False, True) for gray in (False, True)}
    for seed in range(1000):
        matrix = sample_matrix(shaky, pixels, seed)
        gray = np.allclose(matrix[0], matrix[1]) and np.allclose(matrix[1], matrix[2])
        changed = not np.isclose(float(matrix[0, :3].sum()), 1)
        counts[changed, bool(gray)] += 1
    for (changed, gray), count in counts.items():
        probability = (p if changed else 1 - p) * (grayscale_p if gray else 1 - grayscale_p)
        assert (
            abs(count - 1000 * probability) <= 5 * (1000 * probability * (1 - probability)) ** 0.5
        )


def test_grayscale_equals_torchvision() -> None:
    pixels = make_reddish_gray()
    matrix = sample_matrix(make_jitter(p=0.0, grayscale_p=1.0), pixels)
    image = torch.from_numpy(pixels / 255).permute(2, 0, 1)
    expected = functional.rgb_to_grayscale(image, num_output_channels=3).permute(1, 2, 0).numpy()
    actual = apply_matrix(matrix, pixels)
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    np.testing.assert_array_equal(actual[..., 0], actual[..., 1])
    np.testing.assert_array_equal(actual[..., 0], actual[..., 2])


def test_matrix_is_function_of_image_and_draw() -> None:
    shaky = ColorJitter(0.4, 0.4, 0.4, 0.05, p=0.8, grayscale_p=0.1)
    pixels = make_reddish_gray()
    matrices = [sample_matrix(shaky, pixels, seed) for seed in range(50)]
    assert {(matrix.shape, str(matrix.dtype)) for matrix in matrices} == {((3, 4), "float32")}
    for seed, matrix in reversed(list(enumerate(matrices))):
        np.testing.assert_array_equal(sample_matrix(shaky, pixels, seed), matrix)
    assert len({matrix.tobytes() for matrix in matrices}) > 35


def test_jitter_draws_equally_many_numbers() -> None:
    pixels = np.asarray(create_smooth_image(width=16, height=16))
    left = set()
    for p in (0.0, 0.5, 1.0):
        generator = np.random.default_rng(3)
        for _ in range(8):
            make_jitter(brightness=0.2, p=p, grayscale_p=1 - p).sample_matrix(pixels, generator)
        left.add(float(generator.random()))
    assert len(left) == 1
