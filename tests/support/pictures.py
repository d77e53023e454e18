"""Synthetic photos and JPEG files, and records of decoding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from finetune.data.images.lazy_image import ArrayImage
from finetune.data.images.resample import Box, Interpolation, Pixels

ORIENTATION = 0x0112
"""EXIF tag of the orientation."""


class RecordingImage(ArrayImage):
    """Image in memory that records its crops."""

    def __init__(self, image: Image.Image) -> None:
        super().__init__(np.asarray(image), height=image.height, width=image.width)
        self.boxes: list[Box] = []
        self.num_full_reads = 0

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        self.boxes.append(box)
        return super().crop(box, size, mode)

    def to_pil(self) -> Image.Image:
        self.num_full_reads += 1
        return super().to_pil()


def write_jpeg(file: Path, image: Image.Image, *, orientation: int = 1, **options: Any) -> Path:
    """Write a JPEG with an EXIF orientation and options of Pillow."""
    exif = Image.Exif()
    if orientation != 1:
        exif[ORIENTATION] = orientation
    image.save(file, "JPEG", exif=exif, **options)
    return file


def compute_psnr(one: Pixels, other: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two images, in dB."""
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def record_decoded_shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list to which simplejpeg appends the shape of every decoded image from now on."""
    shapes: list[tuple[int, ...]] = []
    original: Callable[..., Pixels] = simplejpeg.decode_jpeg

    def decode(*arguments: Any, **options: Any) -> Pixels:
        pixels = original(*arguments, **options)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode)
    return shapes


def create_scene(seed: int, *, width: int = 160, height: int = 120) -> Image.Image:
    """Return a synthetic photo: smooth fields of several sizes, and shapes with edges.

    Scenes of different seeds are unrelated; scenes of one seed and two sizes show the same.
    """
    random = np.random.default_rng(seed)
    fields = np.zeros((96, 128, 3))
    for spread in (2, 6, 18):
        grain = gaussian_filter(random.normal(size=fields.shape), (spread, spread, 0))
        fields += grain / grain.std()
    pixels = np.clip(128 + 32 * fields, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for number in range(6):
        x, y, right, down = random.uniform(size=4) * [0.8, 0.8, 0.3, 0.3] + [0, 0, 0.1, 0.1]
        box = [x * width, y * height, (x + right) * width, (y + down) * height]
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape(box, fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


def draw_stripes(random: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Return which of blue, green and red are present, and an image with a stripe of each.

    Args:
        random: Source of the colours and of the places of the stripes.
    """
    present = random.random(3) < np.array([0.5, 0.4, 0.3])
    pixels = random.integers(0, 120, (32, 32, 3))
    for channel in np.flatnonzero(present[::-1]):
        left = random.integers(0, 26)
        pixels[:, left : left + 6, channel] = random.integers(170, 255)
    return present, pixels.astype(np.uint8)
