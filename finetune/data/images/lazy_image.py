"""One image before it is cut to size, and the cheapest way to the part of it that is needed."""

import io
import math
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from finetune.data.images.decode import (
    DEFAULT_MAX_PIXELS,
    check_size,
    decode_image,
    read_orientation,
)

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the full image; right and bottom are outside."""
Interpolation = Literal["bilinear", "bicubic"]

DCT_SCALES = (8, 4, 2)
"""Denominators with a fast inverse DCT; libjpeg-turbo's others are slower than decoding in full."""

_ANTIALIAS_THRESHOLD = 1.1
"""Shrunk so little, two-tap interpolation is within 42 dB of an antialiased one, and cheaper."""

_EXIF_TRANSFORMS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
"""EXIF orientation to what turns the stored pixels upright: flip rows, flip columns, transpose."""


class LazyImage(Protocol):
    """An upright RGB image of ``height`` x ``width`` pixels, of which parts can be had."""

    height: int
    width: int

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        """Return a part as uint8 pixels of shape (*size, 3), antialiased where it shrinks."""

    def to_pil(self) -> Image.Image:
        """Return all pixels."""


class ArrayImage:
    """A picture in memory.

    Args:
        pixels: uint8, shape (H, W, 3), of the whole image; smaller than it, if it was shrunk.
        height: Of the full image.
        width: Of the full image.
    """

    def __init__(self, pixels: Pixels, *, height: int, width: int) -> None:
        self.pixels = pixels
        self.height = height
        self.width = width

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        """Return a part; its edges lie on whole pixels of what is stored."""
        rows, columns, _ = self.pixels.shape
        scale = (rows / self.height, columns / self.width)
        return resize(_crop_scaled(self.pixels, box, scale), size, mode)

    def to_pil(self) -> Image.Image:
        """Return all stored pixels."""
        return Image.fromarray(np.ascontiguousarray(self.pixels))


class LazyJpeg:
    """A JPEG file in memory, decoded no larger than a part of it needs.

    Args:
        path: Where it was read; Pillow decodes it from there if it is damaged.
        data: The file.
        shape: Height and width as stored.
        orientation: EXIF orientation, 1 to 8.
        max_pixels: Larger images are refused.
    """

    def __init__(
        self, path: Path, data: bytes, shape: tuple[int, int], orientation: int, max_pixels: int
    ) -> None:
        self.path = path
        self.data = data
        self.shape = shape
        self.orientation = orientation
        self.max_pixels = max_pixels
        self.height, self.width = shape if orientation < 5 else shape[::-1]

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        """Return a part, decoded at 1/8, 1/4, 1/2 or 1: never smaller than ``size``.

        Raises:
            DataError: The file cannot be decoded.
        """
        height, width = box[3] - box[1], box[2] - box[0]
        fitting = (k for k in DCT_SCALES if height >= k * size[0] and width >= k * size[1])
        scale = next(fitting, 1)
        pixels = self._decode(scale)
        if pixels is None:
            return self._decode_with_pillow().crop(box, size, mode)
        transposed = _EXIF_TRANSFORMS[self.orientation][2]
        stored = _crop_scaled(pixels, self._to_stored_box(box), (1 / scale, 1 / scale))
        small = resize(stored, size[::-1] if transposed else size, mode)
        return np.ascontiguousarray(_apply_orientation(small, self.orientation))

    def to_pil(self) -> Image.Image:
        """Return all pixels at full size, the same as Pillow's.

        Raises:
            DataError: The file cannot be decoded.
        """
        pixels = self._decode(1)
        if pixels is None:
            return self._decode_with_pillow().to_pil()
        return Image.fromarray(np.ascontiguousarray(_apply_orientation(pixels, self.orientation)))

    def _decode(self, scale: int) -> Pixels | None:
        """Return the pixels as stored, or None for damage, which Pillow may bear or name."""
        rows, columns = (-(-side // scale) for side in self.shape)
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                self.data, "RGB", min_height=rows, min_width=columns
            )
        except ValueError:
            return None
        return pixels

    def _decode_with_pillow(self) -> ArrayImage:
        image = decode_image(self.path, max_pixels=self.max_pixels)
        return ArrayImage(np.asarray(image), height=image.height, width=image.width)

    def _to_stored_box(self, box: Box) -> Box:
        """Return a box of the upright image in the pixels as stored."""
        left, top, right, bottom = box
        flip_rows, flip_columns, transposed = _EXIF_TRANSFORMS[self.orientation]
        height, width = self.shape
        if transposed:
            left, top, right, bottom = top, left, bottom, right
        if flip_columns:
            left, right = width - right, width - left
        if flip_rows:
            top, bottom = height - bottom, height - top
        return left, top, right, bottom


def open_image(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> LazyImage:
    """Return the picture in a file; of a JPEG only the header is read yet.

    Raises:
        DataError: The reason for which the file cannot be used, without its path.
    """
    return _open_jpeg(path, max_pixels) or _open_with_pillow(path, max_pixels)


def resize(pixels: Pixels, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
    """Return uint8 pixels of shape (*size, 3), antialiased where the image shrinks.

    Args:
        pixels: uint8, shape (H, W, 3); need not be contiguous.
        size: Height and width.
        mode: Kernel.
    """
    if pixels.shape[:2] == size:
        return pixels.copy()
    shrinking = max(pixels.shape[0] / size[0], pixels.shape[1] / size[1])
    if mode == "bilinear" and shrinking <= _ANTIALIAS_THRESHOLD:
        return np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
    # the permuted batch of one keeps the strides of channels last; any other way to make it leaves
    # torch free to take it for channels first, which costs more than the resize itself
    ready = np.require(pixels, requirements=["C", "W"])  # torch warns of what it may not write
    image = torch.from_numpy(ready)[None].permute(0, 3, 1, 2)
    small = functional.interpolate(image, size=size, mode=mode, antialias=True)
    resized: Pixels = small.permute(0, 2, 3, 1)[0].numpy()
    return resized


def _crop_scaled(pixels: Pixels, box: Box, scale: tuple[float, float]) -> Pixels:
    """Return the pixels of a box of the full image in an image that is ``scale`` times as large."""
    rows, columns, _ = pixels.shape
    top, bottom = _snap_to_grid(box[1], box[3], scale[0], rows)
    left, right = _snap_to_grid(box[0], box[2], scale[1], columns)
    return pixels[top:bottom, left:right]


def _apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    flip_rows, flip_columns, transposed = _EXIF_TRANSFORMS[orientation]
    turned = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return turned.transpose(1, 0, 2) if transposed else turned


def _snap_to_grid(first: int, last: int, scale: float, limit: int) -> tuple[int, int]:
    """Return an edge and its opposite in stored pixels, at least one apart.

    Halves are rounded up, both alike; to even numbers a box might lose a pixel.
    """
    start, end = (math.floor(edge * scale + 0.5) for edge in (first, last))
    start = min(start, limit - 1)
    return start, max(start + 1, min(end, limit))


def _open_jpeg(path: Path, max_pixels: int) -> LazyJpeg | None:
    """Return None for what Pillow has to read: other formats, CMYK, and files with damage."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray", "RGB"):
        return None
    check_size(width, height, max_pixels)
    return LazyJpeg(path, data, (height, width), _read_jpeg_orientation(data), max_pixels)


def _open_with_pillow(path: Path, max_pixels: int) -> ArrayImage:
    image = decode_image(path, max_pixels=max_pixels)
    return ArrayImage(np.asarray(image), height=image.height, width=image.width)


def _read_jpeg_orientation(data: bytes) -> int:
    """Return the EXIF orientation; 1 where there is none that Pillow can read."""
    end = _find_first_scan(data)
    if data.find(b"Exif\0\0", 0, end) < 0 and data.find(b"tiff:Orientation", 0, end) < 0:
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return read_orientation(image)
    except Exception:  # damaged EXIF data raise what they like, and turn nothing
        return 1


def _find_first_scan(data: bytes) -> int:
    """Return where a JPEG's first scan begins; its whole length where that cannot be told."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xDA:
            return place
        filler = marker == 0xFF
        place += 1 if filler else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return len(data)
