"""Tests of resizing against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.images.resample import Interpolation, resize
from tests.support.helpers import create_noise, create_smooth_image
from tests.support.pictures import compute_psnr

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def make_gray_noise(*, width: int, height: int) -> Image.Image:
    """Return noise that no kernel drives to black or white, where clipping would matter."""
    return Image.fromarray(np.asarray(create_noise(width=width, height=height)) // 3 + 85)


# reductions over 1.1 on a side, or none at all
SIZES = [(20, 30), (90, 120), (45, 200), (200, 50), (1, 1), (61, 80), (60, 81), (54, 80), (60, 70)]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
def test_resize_is_close_to_pillow(size: tuple[int, int], mode: Interpolation) -> None:
    image = make_gray_noise(width=80, height=60)
    actual = resize(np.asarray(image), size, mode)
    expected = np.asarray(image.resize(size[::-1], FILTERS[mode]))
    assert actual.dtype == np.uint8
    assert actual.shape == (*size, 3)
    assert actual.flags.c_contiguous
    np.testing.assert_allclose(actual.astype(int), expected.astype(int), atol=1)


@pytest.mark.parametrize("size", [(479, 640), (455, 600), (440, 585), (437, 582)])
def test_resize_small_reduction_is_within_42_db(size: tuple[int, int]) -> None:
    image = create_smooth_image(width=640, height=480)
    expected = np.asarray(image.resize(size[::-1], FILTERS["bilinear"]))
    assert compute_psnr(resize(np.asarray(image), size), expected) >= 42


def test_resize_read_only_or_strided_pixels_does_not_warn() -> None:
    pixels = np.asarray(create_noise(width=80, height=60))
    assert not pixels.flags.writeable
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        for view in (pixels, pixels[::-1, 3:], pixels.transpose(1, 0, 2), pixels[..., ::-1]):
            expected = np.asarray(
                Image.fromarray(np.ascontiguousarray(view)).resize((30, 20), FILTERS["bilinear"])
            )
            actual = resize(view, (20, 30))
            np.testing.assert_allclose(actual.astype(int), expected.astype(int), atol=1)
            assert actual.flags.c_contiguous
    finally:
        torch.set_warn_always(before)
