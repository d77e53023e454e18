"""Opacity of 16 bits has the bits of the colours where all of its values fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from finetune.data.images.decode import open_image
from finetune.types import PixelRange, ReadOptions
from tests.data.images.codecs.test_png16 import chunk, write_png

TWELVE_BITS, WINDOW = PixelRange(0, 4095), PixelRange(100, 4000)


def write(path: Path, samples: NDArray[Any], planar: str = "contig") -> Path:
    if path.suffix == ".png":
        return write_png(path, samples)
    stored = np.moveaxis(samples, -1, 0) if planar == "separate" else samples
    tifffile.imwrite(
        path, np.ascontiguousarray(stored), photometric="rgb", planarconfig=planar,
        extrasamples=["unassalpha"], metadata=None,
    )  # fmt: skip
    return path


def create_samples(opacity: int) -> NDArray[np.uint16]:
    """Return dark samples, of which the first row is transparent."""
    samples = np.full((8, 6, 4), 321, np.uint16)
    samples[..., 3] = opacity
    samples[0, :, 3] = 0
    return samples


@pytest.mark.parametrize("name", ["a.png", "contig.tif", "separate.tif"])
@pytest.mark.parametrize("opacity", [4095, 65_535])
def test_open_image_opaque_pixels_of_12_or_16_bits_are_opaque(
    tmp_path: Path, name: str, opacity: int
) -> None:
    path = write(tmp_path / name, create_samples(opacity), name.removesuffix(".tif"))
    image = open_image(path, options=ReadOptions(pixel_range=TWELVE_BITS))
    pixels = np.asarray(image.to_pil())
    assert (pixels[0] == 255).all()
    assert (pixels[1:] == 20).all()


@pytest.mark.parametrize("name", ["a.png", "contig.tif"])
def test_open_image_window_is_not_for_the_opacity(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, create_samples(65_535))
    image = open_image(path, options=ReadOptions(pixel_range=WINDOW))
    assert (np.asarray(image.to_pil())[1:] < 20).all()


def test_open_image_png_opacity_of_stated_bits(tmp_path: Path) -> None:
    stated = chunk(b"sBIT", bytes([12] * 4))
    path = write_png(tmp_path / "a.png", create_samples(4095), stated)
    pixels = np.asarray(open_image(path).to_pil())
    assert (pixels[0] == 255).all()
    assert (pixels[1:] == 20).all()
