"""Pictures and JPEG files that tests of the input pipeline share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from finetune.data.picture import ArrayPicture, Box, Interpolation, Pixels

ORIENTATION = 0x0112
"""The EXIF tag."""


class Watched(ArrayPicture):
    """A picture in memory that remembers which parts of it were asked for."""

    def __init__(self, image: Image.Image) -> None:
        super().__init__(np.asarray(image), height=image.height, width=image.width)
        self.boxes: list[Box] = []
        self.times_whole = 0

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        self.boxes.append(box)
        return super().crop(box, size, mode)

    def image(self) -> Image.Image:
        self.times_whole += 1
        return super().image()


def write_jpeg(file: Path, image: Image.Image, *, orientation: int = 1, **options: Any) -> Path:
    """Write an image as a camera does that was held in some way, with options of Pillow's."""
    exif = Image.Exif()
    if orientation != 1:
        exif[ORIENTATION] = orientation
    image.save(file, "JPEG", exif=exif, **options)
    return file


def psnr(one: Pixels, other: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two images, in dB."""
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def watch_decoder(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the list to which simplejpeg adds the shape of all that it decodes from now on."""
    shapes: list[tuple[int, ...]] = []
    real: Callable[..., Pixels] = simplejpeg.decode_jpeg

    def decode(*arguments: Any, **options: Any) -> Pixels:
        pixels = real(*arguments, **options)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode)
    return shapes
