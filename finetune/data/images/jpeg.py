"""JPEG files, decoded by simplejpeg at no higher resolution than a crop needs."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from finetune.data.images.codecs.jpeg_header import (
    JpegHeader,
    parse_jpeg_header,
    read_jpeg_orientation,
)
from finetune.data.images.lazy_image import (
    EXIF_TRANSFORMS,
    LARGE_PIXELS,
    LazyImage,
    apply_orientation,
    choose_whole_factor,
    to_stored_box,
)
from finetune.data.images.memory import BUDGET
from finetune.data.images.read_errors import (
    check_size,
    describe_damage,
    translate_read_errors,
)
from finetune.data.images.resample import Box, Interpolation, Pixels, crop_scaled, resize
from finetune.errors import DataError
from finetune.types import ReadOptions

DCT_SCALES = (8, 4, 2)
"""Denominators with a fast inverse DCT; libjpeg-turbo's others are slower than full decoding."""

OpenFn = Callable[[], LazyImage]

_CHECK_SCALE = 8
_MAX_COEFFICIENT_BYTES = 700_000_000
_MAX_FILE_BYTES = 400_000_000


class LazyJpeg:
    """JPEG file in memory, decoded at no higher resolution than a crop needs.

    Args:
        path: Path of the file; Pillow decodes it from there if the data are damaged.
        data: Content of the file.
        shape: Height and width as stored.
        orientation: EXIF orientation, 1 to 8.
        mode: Mode of the file's pixels.
        open_with_pillow: Function that decodes the file by Pillow.
    """

    def __init__(
        self,
        path: Path,
        data: bytes,
        shape: tuple[int, int],
        *,
        orientation: int,
        mode: str,
        open_with_pillow: OpenFn,
    ) -> None:
        self.path = path
        self.data = data
        self.shape = shape
        self.orientation = orientation
        self.mode = mode
        self.max_value = 0
        self.open_with_pillow = open_with_pillow
        self.height, self.width = shape if orientation < 5 else shape[::-1]

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        """Return a resized crop, decoded at scale 1/8, 1/4, 1/2 or 1 but never below ``size``.

        Raises:
            DataError: The file cannot be decoded.
        """
        height, width = box[3] - box[1], box[2] - box[0]
        sufficient = (k for k in DCT_SCALES if height >= k * size[0] and width >= k * size[1])
        scale = next(sufficient, self._get_min_scale())
        pixels = self._decode(scale)
        if pixels is None:
            return self.open_with_pillow().crop(box, size, mode)
        is_transposed = EXIF_TRANSFORMS[self.orientation][2]
        box = to_stored_box(box, self.shape, self.orientation)
        stored = crop_scaled(pixels, box, (1 / scale, 1 / scale))
        resized = resize(stored, size[::-1] if is_transposed else size, mode)
        return np.ascontiguousarray(apply_orientation(resized, self.orientation))

    def to_pil(self) -> Image.Image:
        """Return the whole image, bit-identical to Pillow's; see ``LazyImage``.

        Raises:
            DataError: The file cannot be decoded.
        """
        factor = choose_whole_factor(*self.shape)
        pixels = self._decode(next((k for k in (1, 2, 4) if k >= factor), 8))
        if pixels is None:
            return self.open_with_pillow().to_pil()
        return Image.fromarray(np.ascontiguousarray(apply_orientation(pixels, self.orientation)))

    def to_grey(self, side: int) -> Image.Image:
        """Return the image in grey, decoded at its smallest sufficient scale.

        Raises:
            DataError: The file cannot be decoded.
        """
        scale = next((k for k in DCT_SCALES if min(self.shape) >= k * side), self._get_min_scale())
        pixels = self._decode(scale, "GRAY")
        if pixels is None:
            return self.open_with_pillow().to_grey(side)
        upright = apply_orientation(pixels, self.orientation)
        return Image.fromarray(np.ascontiguousarray(upright[..., 0]))

    def check(self) -> None:
        """Decode the whole file at a reduced scale, which finds the same damage.

        Raises:
            DataError: The file cannot be decoded.
        """
        if self._decode(_CHECK_SCALE, "GRAY") is None:
            self.open_with_pillow()

    def _get_min_scale(self) -> int:
        return 2 if self.shape[0] * self.shape[1] > LARGE_PIXELS else 1

    def _decode(self, scale: int, color_space: str = "RGB") -> Pixels | None:
        """Return the pixels as stored; None for damaged data, which Pillow may read or describe.

        Raises:
            DataError: Part of the image is missing.
        """
        with translate_read_errors(self.path):
            return decode_strictly(self.data, self.shape, scale, color_space)


def decode_strictly(
    data: bytes, shape: tuple[int, int], scale: int, color_space: str
) -> Pixels | None:
    """Return the pixels of a JPEG as stored; None for damage that may be bearable.

    libjpeg fills in what is missing with grey, and only warns of it.

    Args:
        data: Content of the file.
        shape: Height and width.
        scale: Denominator of the scale.
        color_space: Colour space of the pixels.

    Raises:
        DataError: Part of the image or a table is missing.
    """
    rows, columns = (-(-side // scale) for side in shape)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, color_space, min_height=rows, min_width=columns
        )
    except ValueError as error:
        message = str(error)
        if "premature end" in message.lower() or message.startswith("Bogus "):
            raise DataError(describe_damage("JPEG", message)) from error
        return None
    return pixels


def open_jpeg(
    path: Path, file: io.FileIO, options: ReadOptions, open_with_pillow: OpenFn
) -> LazyImage | None:
    """Return a JPEG; None for files that only Pillow reads: lossless or with a damaged header.

    Args:
        path: File that begins like a JPEG.
        file: The same, opened; it is read from its start.
        options: Limit of pixels.
        open_with_pillow: Function that decodes the file by Pillow.

    Raises:
        DataError: No decoder here reads the file, it is too large, or part of it is missing.
    """
    if os.fstat(file.fileno()).st_size > _MAX_FILE_BYTES:
        raise DataError(f"too large: a JPEG of more than {_MAX_FILE_BYTES / 1e6:.0f} MB")
    file.seek(0)
    data = file.read()
    header = parse_jpeg_header(data)
    if header is None:
        return None
    if obstacle := header.describe_obstacle():
        raise DataError(obstacle)
    shape = header.height, header.width
    if header.height == 0 or header.is_lossless:
        # simplejpeg crashes if it is to decode a lossless JPEG at a scale
        return None
    check_size(header.width, header.height, options.max_pixels)
    _check_memory(header)
    try:
        color_space = simplejpeg.decode_jpeg_header(data)[2]
    except ValueError:
        return None
    if color_space in ("CMYK", "YCCK"):
        decode_strictly(data, shape, _CHECK_SCALE, "CMYK")
    if color_space not in ("YCbCr", "Gray", "RGB"):
        return None
    image = LazyJpeg(
        path,
        data,
        shape,
        orientation=read_jpeg_orientation(data, header.scan_offset),
        mode="L" if color_space == "Gray" else "RGB",
        open_with_pillow=open_with_pillow,
    )
    BUDGET.reserve(image, 3 * header.height * header.width + header.coefficient_bytes)
    return image


def _check_memory(header: JpegHeader) -> None:
    """Check that the coefficients of a progressive JPEG fit into memory.

    Raises:
        DataError: They do not.
    """
    if header.coefficient_bytes > _MAX_COEFFICIENT_BYTES:
        raise DataError(
            f"too large: a progressive JPEG of {header.width}x{header.height} needs "
            f"{header.coefficient_bytes / 1e6:.0f} MB; store it as baseline"
        )
