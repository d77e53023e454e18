"""Fingerprints of image files: 1.1 kB each, enough to find duplicates and suspicious images."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.decode import open_image
from finetune.data.images.jpeg import LazyJpeg
from finetune.data.images.read_errors import translate_read_errors
from finetune.errors import DataError
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions

THUMBNAIL_SIDE = 32
_MEASURED_SIDE = 128
"""Side in pixels of the square on which statistics are computed, whatever the aspect ratio."""

_SHARPNESS_QUANTILE = 0.999

_DIGEST_BYTES = 16

FINGERPRINT = np.dtype(
    [
        ("digest", "u1", _DIGEST_BYTES),  # BLAKE2b of the file
        ("num_bytes", "<u8"),
        ("width", "<u4"),  # upright
        ("height", "<u4"),
        ("mode", "S8"),  # Pillow's, as stored
        ("max_value", "<u4"),  # of a 16-bit image that does not state its bits; 0 for others
        ("dark", "<f4"),  # 5th percentile of the brightness, in [0, 1]
        ("bright", "<f4"),  # 95th percentile of the brightness
        ("contrast", "<f4"),  # between the percentiles 0.5 and 99.5, in [0, 1]
        ("sharpness", "<f4"),  # slope of the sharpest edges, in contrasts per pixel of 128
        ("thumbnail", "u1", (THUMBNAIL_SIDE, THUMBNAIL_SIDE)),  # grey levels
    ]
)
"""Fields of a fingerprint."""


def compute_fingerprint(path: Path, *, options: ReadOptions = DEFAULT_READ_OPTIONS) -> NDArray[Any]:
    """Compute the fingerprint of a file: dtype ``FINGERPRINT``, shape (); it is read in full.

    It sees the pixels that training sees. JPEGs are decoded at their smallest sufficient scale,
    which finds the same damage.

    Raises:
        DataError: The file cannot be used for training; the message is the reason without the path.
    """
    image = open_image(path, options=options)
    grey = image.to_grey(_MEASURED_SIDE)
    if isinstance(image, LazyJpeg):
        digest, num_bytes = _hash_stream(io.BytesIO(image.data))
    else:
        with translate_read_errors(path):
            digest, num_bytes = _hash_file(path)
    fingerprint = np.zeros((), FINGERPRINT)
    fingerprint["digest"] = np.frombuffer(digest, np.uint8)
    fingerprint["num_bytes"] = num_bytes
    fingerprint["width"], fingerprint["height"] = image.width, image.height
    fingerprint["mode"] = image.mode.encode()[:8]
    fingerprint["max_value"] = image.max_value
    _compute_statistics(grey, fingerprint)
    return fingerprint


def compute_digest(path: Path) -> str:
    """Compute the digest of a file that a fingerprint has, hexadecimal; "" if it cannot be read."""
    try:
        return _hash_file(path)[0].hex()
    except OSError:
        return ""


def decode_greyscale(
    path: Path, side: int, *, options: ReadOptions = DEFAULT_READ_OPTIONS
) -> NDArray[np.float32]:
    """Decode an upright image as grey levels in [0, 255], shape (side, side).

    Args:
        path: Image file.
        side: Height and width to resize to.
        options: How its fingerprint was computed.

    Raises:
        DataError: The file has changed since its fingerprint was computed.
    """
    try:
        grey = open_image(path, options=options).to_grey(side)
    except DataError as error:
        raise DataError(
            f"{path} was readable when its fingerprint was computed, but is not now: {error}. Run "
            f"the command again when nothing else changes the images."
        ) from error
    return np.asarray(_resize(grey, side), np.float32)


def _hash_file(path: Path) -> tuple[bytes, int]:
    """Return the BLAKE2b digest of a file, and its number of bytes."""
    with path.open("rb") as file:
        return _hash_stream(file)


def _hash_stream(file: io.BytesIO | io.BufferedReader) -> tuple[bytes, int]:
    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
    return digest.digest(), file.seek(0, io.SEEK_END)


def _compute_statistics(grey: Image.Image, fingerprint: NDArray[Any]) -> None:
    """Fill in the brightness, contrast, sharpness and thumbnail of a fingerprint."""
    small = _resize(grey, _MEASURED_SIDE)
    cumulative = np.cumsum(small.histogram())
    darkest, dark, bright, brightest = (
        int(np.searchsorted(cumulative, fraction * cumulative[-1]))
        for fraction in (0.005, 0.05, 0.95, 0.995)
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
        rank = round(_SHARPNESS_QUANTILE * (slopes.size - 1))
        fingerprint["sharpness"] = min(1.0, float(np.partition(slopes, rank)[rank]) / span)
    fingerprint["thumbnail"] = np.asarray(small.reduce(_MEASURED_SIDE // THUMBNAIL_SIDE))


def _resize(grey: Image.Image, side: int) -> Image.Image:
    """Resize to a square, averaging where the image shrinks."""
    return grey.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
