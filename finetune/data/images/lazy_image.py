"""Images that decode only the part and the resolution that a crop needs.

``open_image`` chooses between simplejpeg and ``decode``, which reads every format with Pillow.
"""

import io
from pathlib import Path
from typing import Protocol

import numpy as np
import simplejpeg
from PIL import Image

from finetune.data.images.decode import (
    check_size,
    decode_image,
    read_orientation,
)
from finetune.data.images.resample import Box, Interpolation, Pixels, crop_scaled, resize
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions

DCT_SCALES = (8, 4, 2)
"""Denominators with a fast inverse DCT; libjpeg-turbo's others are slower than full decoding."""

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
"""EXIF orientation to whether rows are flipped, columns are flipped, and both are transposed."""


class LazyImage(Protocol):
    """Upright RGB image of ``height`` x ``width`` pixels that returns crops."""

    height: int
    width: int

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        """Return a crop resized to uint8 pixels of shape (*size, 3), antialiased if it shrinks."""

    def to_pil(self) -> Image.Image:
        """Return the whole image."""


class ArrayImage:
    """Image whose pixels are in memory.

    Args:
        pixels: Pixels of the whole image, uint8, shape (H, W, 3); smaller than the full image if it
            was shrunk.
        height: Height of the full image.
        width: Width of the full image.
    """

    def __init__(self, pixels: Pixels, *, height: int, width: int) -> None:
        self.pixels = pixels
        self.height = height
        self.width = width

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        """Return a resized crop; its edges are rounded to whole stored pixels."""
        rows, columns, _ = self.pixels.shape
        scale = (rows / self.height, columns / self.width)
        return resize(crop_scaled(self.pixels, box, scale), size, mode)

    def to_pil(self) -> Image.Image:
        """Return all stored pixels."""
        return Image.fromarray(np.ascontiguousarray(self.pixels))


class LazyJpeg:
    """JPEG file in memory, decoded at no higher resolution than a crop needs.

    Args:
        path: Path of the file; Pillow decodes it from there if the data are damaged.
        data: Content of the file.
        shape: Height and width as stored.
        orientation: EXIF orientation, 1 to 8.
        options: How image files are read.
    """

    def __init__(
        self,
        path: Path,
        data: bytes,
        shape: tuple[int, int],
        orientation: int,
        options: ReadOptions,
    ) -> None:
        self.path = path
        self.data = data
        self.shape = shape
        self.orientation = orientation
        self.options = options
        self.height, self.width = shape if orientation < 5 else shape[::-1]

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        """Return a resized crop, decoded at scale 1/8, 1/4, 1/2 or 1 but never below ``size``.

        Raises:
            DataError: The file cannot be decoded.
        """
        height, width = box[3] - box[1], box[2] - box[0]
        sufficient = (k for k in DCT_SCALES if height >= k * size[0] and width >= k * size[1])
        scale = next(sufficient, 1)
        pixels = self._decode(scale)
        if pixels is None:
            return self._decode_with_pillow().crop(box, size, mode)
        is_transposed = _EXIF_TRANSFORMS[self.orientation][2]
        stored = crop_scaled(pixels, self._to_stored_box(box), (1 / scale, 1 / scale))
        resized = resize(stored, size[::-1] if is_transposed else size, mode)
        return np.ascontiguousarray(_apply_orientation(resized, self.orientation))

    def to_pil(self) -> Image.Image:
        """Return the whole image at full size, bit-identical to Pillow's.

        Raises:
            DataError: The file cannot be decoded.
        """
        pixels = self._decode(1)
        if pixels is None:
            return self._decode_with_pillow().to_pil()
        return Image.fromarray(np.ascontiguousarray(_apply_orientation(pixels, self.orientation)))

    def _decode(self, scale: int) -> Pixels | None:
        """Return the pixels as stored; None for damaged data, which Pillow may read or describe."""
        rows, columns = (-(-side // scale) for side in self.shape)
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                self.data, "RGB", min_height=rows, min_width=columns
            )
        except ValueError:
            return None
        return pixels

    def _decode_with_pillow(self) -> ArrayImage:
        return _open_with_pillow(self.path, self.options)

    def _to_stored_box(self, box: Box) -> Box:
        """Return a box of the upright image in pixels as stored."""
        left, top, right, bottom = box
        flip_rows, flip_columns, is_transposed = _EXIF_TRANSFORMS[self.orientation]
        height, width = self.shape
        if is_transposed:
            left, top, right, bottom = top, left, bottom, right
        if flip_columns:
            left, right = width - right, width - left
        if flip_rows:
            top, bottom = height - bottom, height - top
        return left, top, right, bottom


def open_image(path: Path, *, options: ReadOptions = DEFAULT_READ_OPTIONS) -> LazyImage:
    """Return the image in a file; only the header of a JPEG is decoded at once.

    Raises:
        DataError: The file cannot be used; the message is the reason without the path.
    """
    return _open_jpeg(path, options) or _open_with_pillow(path, options)


def _apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    flip_rows, flip_columns, is_transposed = _EXIF_TRANSFORMS[orientation]
    flipped = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return flipped.transpose(1, 0, 2) if is_transposed else flipped


def _open_jpeg(path: Path, options: ReadOptions) -> LazyJpeg | None:
    """Return None for files that only Pillow reads: other formats, CMYK and damaged headers."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if color_space not in ("YCbCr", "Gray", "RGB"):
        return None
    check_size(width, height, options.max_pixels)
    return LazyJpeg(path, data, (height, width), _read_jpeg_orientation(data), options)


def _open_with_pillow(path: Path, options: ReadOptions) -> ArrayImage:
    image = decode_image(path, options=options)
    return ArrayImage(np.asarray(image), height=image.height, width=image.width)


def _read_jpeg_orientation(data: bytes) -> int:
    """Return the EXIF orientation; 1 if there is none that Pillow can read."""
    end = _find_first_scan(data)
    if data.find(b"Exif\0\0", 0, end) < 0 and data.find(b"tiff:Orientation", 0, end) < 0:
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return read_orientation(image)
    except Exception:  # damaged EXIF data raise various exceptions, and turn nothing
        return 1


def _find_first_scan(data: bytes) -> int:
    """Return the offset of a JPEG's first scan; the length of the data if it is not found."""
    offset = 2
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xDA:
            return offset
        is_fill_byte = marker == 0xFF
        offset += 1 if is_fill_byte else 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return len(data)
