"""Tests of the evaluation transform of very long images: bounded memory, the same pixels."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.transforms import bounded_resize
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.types import PreprocessSpec
from tests.support.helpers import create_noise

MEAN = (0.5, 0.5, 0.5)
MODES = [("center", 0.875), ("center", 1.0), ("squash", 0.9), ("border", 0.9)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("crop_mode", "crop_pct"), MODES)
@pytest.mark.parametrize("sides", [(96, 96), (48, 96)])
def test_eval_transform_cut_before_enlarging_gives_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch,
    sides: tuple[int, int],
    crop_mode: str,
    crop_pct: float,
    interpolation: str,
) -> None:
    spec = PreprocessSpec((3, *sides), MEAN, MEAN, interpolation, crop_pct, crop_mode)
    transform = EvalTransform(spec)
    for size in ((1, 1), (1, 300), (300, 1), (7, 45), (40, 31), (80, 47)):
        image = create_noise(width=size[0], height=size[1])
        with monkeypatch.context() as patch:
            patch.setattr(bounded_resize, "MAX_RESIZED_PIXELS", 10**9)
            expected = transform.to_pixels(image).astype(int)
            patch.setattr(bounded_resize, "MAX_RESIZED_PIXELS", 0)
            pixels = transform.to_pixels(image)
        # Pillow takes the edges of a box in single precision
        np.testing.assert_allclose(pixels, expected, atol=1)
        assert transform.to_pixels(image).shape == (*sides, 3)


def test_eval_transform_image_of_ordinary_size_is_resized_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounded_resize, "_resize_window", lambda *_: pytest.fail("not whole"))
    transform = EvalTransform(PreprocessSpec((3, 224, 224), MEAN, MEAN, "bicubic", 0.875, "center"))
    for size in ((8, 8), (640, 480), (4000, 300), (30, 2000)):
        assert transform.to_pixels(Image.new("RGB", size)).shape == (224, 224, 3)


def read_peak_bytes() -> int:
    """Return the largest memory of this process since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line)


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="/proc cannot reset the peak memory"
)
def test_eval_transform_very_long_image_needs_little_memory() -> None:
    transforms = [
        EvalTransform(PreprocessSpec((3, 224, 224), MEAN, MEAN, "bicubic", crop_pct, crop_mode))
        for crop_mode, crop_pct in MODES
    ]
    transforms[0].to_pixels(Image.new("RGB", (300, 200)))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = read_peak_bytes()
    for transform in transforms:
        for size in ((1, 65000), (65000, 1)):
            assert transform.to_pixels(Image.new("RGB", size)).shape == (224, 224, 3)
    assert read_peak_bytes() - before < 100_000_000  # 12 GB when resized whole
