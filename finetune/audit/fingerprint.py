"""One look at an image file: enough to tell copies and suspicious images, in 1.1 kB."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.decode import (
    DEFAULT_MAX_PIXELS,
    check_size,
    to_upright_grayscale,
    translate_decode_errors,
)
from finetune.errors import DataError

THUMBNAIL_SIDE = 32
_MEASURED_SIDE = 128
"""Pixels a side at which an image is measured, whatever its aspect ratio."""

_SHARPNESS_QUANTILE = 0.999

FINGERPRINT = np.dtype(
    [
        ("digest", "u1", 16),  # BLAKE2b of the file
        ("num_bytes", "<u8"),
        ("width", "<u4"),  # upright
        ("height", "<u4"),
        ("mode", "S8"),  # Pillow's, as stored
        ("dark", "<f4"),  # 5% of the pixels are at most so bright, in [0, 1]
        ("bright", "<f4"),  # 5% are at least so bright
        ("contrast", "<f4"),  # from the darkest half percent to the brightest, in [0, 1]
        ("sharpness", "<f4"),  # of the sharpest edges, as a share of the contrast a pixel of 128
        ("thumbnail", "u1", (THUMBNAIL_SIDE, THUMBNAIL_SIDE)),  # grey
    ]
)
"""What is kept of an image."""


def compute_fingerprint(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[Any]:
    """Return a ``LOOK``, shape (); the file is read once, to its end.

    JPEGs are decoded at the smallest of their scales that serves, which finds damage as well as
    decoding in full.

    Raises:
        DataError: The reason for which the file cannot be trained on, without its path.
    """
    with translate_decode_errors(path):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            check_size(image.width, image.height, max_pixels)
            mode, stored = image.mode, image.size
            image.draft("L", (_MEASURED_SIDE, _MEASURED_SIDE))
            grey, is_turned = to_upright_grayscale(image)
    look = np.zeros((), FINGERPRINT)
    look["digest"] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), np.uint8)
    look["num_bytes"] = len(data)
    look["width"], look["height"] = stored[::-1] if is_turned else stored
    look["mode"] = mode.encode()[:8]
    _compute_statistics(grey, look)
    return look


def decode_greyscale(path: Path, side: int) -> NDArray[np.float32]:
    """Return an upright image as grey levels in [0, 255], shape (side, side).

    Raises:
        DataError: The file is not what it was when it was looked at.
    """
    try:
        with translate_decode_errors(path), Image.open(path) as image:
            image.draft("L", (side, side))
            grey, _ = to_upright_grayscale(image)
            return np.asarray(_resize(grey, side), np.float32)
    except DataError as error:
        raise DataError(
            f"{path} could be read a moment ago, and now cannot: {error}. Run it again once "
            f"nothing changes the images."
        ) from error


def _compute_statistics(grey: Image.Image, fingerprint: NDArray[Any]) -> None:
    small = _resize(grey, _MEASURED_SIDE)
    below = np.cumsum(small.histogram())
    darkest, dark, bright, brightest = (
        int(np.searchsorted(below, share * below[-1])) for share in (0.005, 0.05, 0.95, 0.995)
    )
    span = brightest - darkest
    fingerprint["dark"], fingerprint["bright"], fingerprint["contrast"] = (
        dark / 255,
        bright / 255,
        span / 255,
    )
    if span > 0:
        pixels = np.asarray(small, np.float32)
        down, across = np.diff(pixels[:, :-1], axis=0), np.diff(pixels[:-1], axis=1)
        slopes = np.sqrt(down * down + across * across).ravel()
        place = round(_SHARPNESS_QUANTILE * (slopes.size - 1))
        fingerprint["sharpness"] = min(1.0, float(np.partition(slopes, place)[place]) / span)
    fingerprint["thumbnail"] = np.asarray(small.reduce(_MEASURED_SIDE // THUMBNAIL_SIDE))


def _resize(grey: Image.Image, side: int) -> Image.Image:
    """Return a square image; averaged where it shrinks."""
    return grey.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
