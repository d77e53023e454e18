"""Opening of image files of any format, mode and orientation: one function for all commands.

Whether a file is read, and by what, is decided here alone, so that the checks of ``inspect``,
``predict`` and ``evaluate`` and the training agree on every file.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from finetune.data.images.bit_depth import MAX_DECODE_BYTES, DecodedImage
from finetune.data.images.codecs.canvas import (
    Area,
    find_clean_aperture,
    find_frame_area,
    paste_on_white,
)
from finetune.data.images.codecs.deep_image import read_deep_image
from finetune.data.images.codecs.jpeg2000 import read_depth
from finetune.data.images.codecs.jpeg_header import read_orientation
from finetune.data.images.codecs.tiff import is_tiff
from finetune.data.images.codecs.tiff_bands import read_bands
from finetune.data.images.codecs.transparency import (
    Key,
    convert_to_rgba,
    flatten_on_white,
    read_transparent_key,
)
from finetune.data.images.formats import NUM_START_BYTES, ImageFormat, find_format, list_plugins
from finetune.data.images.jpeg import LazyJpeg, open_jpeg
from finetune.data.images.lazy_image import (
    LARGE_PIXELS,
    STRIP_PIXELS,
    ArrayImage,
    LazyImage,
    PillowImage,
    apply_orientation,
    reduce_rows,
)
from finetune.data.images.memory import BUDGET
from finetune.data.images.multichannel import MultichannelImage, select_channels
from finetune.data.images.read_errors import check_size, translate_read_errors
from finetune.data.images.resample import Pixels
from finetune.errors import DataError
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions

Flatten = Callable[[Image.Image], Image.Image]
"""Function from a part of a decoded image to RGB on white."""

OnValues = Callable[[Path, int, bool], None]
"""Function called in a thread with the path of an image of more than 8 bits, the largest value if
it has 16 bits and does not state them (0 if not), and whether values are above the range."""


def open_image(path: Path, *, options: ReadOptions = DEFAULT_READ_OPTIONS) -> LazyImage:
    """Return the image in a file, upright, in RGB and on white; a JPEG is decoded when it is used.

    The EXIF orientation is applied; grey, palette and CMYK are converted; transparent pixels lie on
    white, as in viewers; of several frames it is the first. Other channels and bits that options
    ask for are decoded at once, as a ``MultichannelImage``.

    Args:
        path: Image file; its content decides the format, not its name.
        options: How image files are read.

    Raises:
        DataError: The file cannot be used; the message is the reason without the path.
    """
    with translate_read_errors(path):
        open_with_pillow = partial(_open_with_pillow, path, options)
        with path.open("rb", buffering=0) as file:
            start = file.read(NUM_START_BYTES)
            if start.startswith(b"\xff\xd8\xff"):
                jpeg = open_jpeg(path, file, options, open_with_pillow)
                if jpeg is not None:
                    return jpeg if options.is_rgb else select_channels(jpeg, options)
        if not options.is_rgb and is_tiff(start):
            bands = read_bands(path, options)
            if bands is not None:
                return _to_array_image(bands, MultichannelImage)
        decoded = read_deep_image(path, start, options)
        image = open_with_pillow() if decoded is None else _to_array_image(decoded)
        return image if options.is_rgb else select_channels(image, options)


def check_image(
    path: Path,
    *,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
    on_values: OnValues | None = None,
) -> str | None:
    """Return why a file cannot be used, or None; it is opened as for training, and read in full.

    JPEGs are decoded at 1/8 scale, which finds the same damage in half the time.

    Args:
        path: Image file.
        options: How image files are read.
        on_values: See ``OnValues``.
    """
    try:
        image = open_image(path, options=options)
        if isinstance(image, LazyJpeg):
            image.check()
        if on_values is not None:
            report_values(image, path, options, on_values)
    except DataError as error:
        return str(error)
    return None


def report_values(image: LazyImage, path: Path, options: ReadOptions, on_values: OnValues) -> None:
    """Call a function with the values of an image that was read, see ``OnValues``.

    Args:
        image: Image.
        path: Path or name of it.
        options: How it was read.
        on_values: Function that is called unless the values are those of 8 bits.
    """
    is_clipped = options.pixel_range is not None and (
        image.max_value > options.pixel_range.high
        or (isinstance(image, ArrayImage) and image.is_clipped)
    )
    if image.max_value or is_clipped:
        on_values(path, image.max_value, is_clipped)


def decode_image(path: Path, *, options: ReadOptions = DEFAULT_READ_OPTIONS) -> Image.Image:
    """Return the image in a file as upright 8-bit RGB; see ``open_image``.

    Raises:
        DataError: The file cannot be used; the message is the reason without the path.
    """
    return open_image(path, options=options).to_pil()


def _open_with_pillow(path: Path, options: ReadOptions) -> LazyImage:
    """Return an image that Pillow reads.

    Raises:
        DataError: The file cannot be used.
    """
    with translate_read_errors(path), Image.open(path, formats=list_plugins()) as image:
        mode, area = image.mode, find_frame_area(image)
        check_size(image.width, image.height, options.max_pixels)
        is_jpeg2000 = isinstance(image, Jpeg2KImageFile)
        deep = read_depth(path, image, options.pixel_range) if is_jpeg2000 else None
        BUDGET.reserve(image, _limit_memory(image))
        image.load()  # a damaged file raises here, not while its EXIF data are read
        orientation = read_orientation(image)
        key = read_transparent_key(path, image)
        flatten: Flatten = partial(convert_to_rgba if options.keeps_opacity else _flatten, key=key)
        max_value = 0
        if deep is not None:
            flatten, max_value = deep.flatten, deep.get_max_value(image)
            if options.bit_depth == 16:
                grey = deep.convert_to_16_bits(image)
                return _to_array_image(DecodedImage(grey, orientation, mode, max_value))
        loaded = _crop_to_aperture(path, image)
        if area is not None:
            loaded = paste_on_white(loaded, area, flatten, keeps_opacity=options.keeps_opacity)
            flatten = _keep
        if loaded.width * loaded.height <= LARGE_PIXELS:
            pixels = _to_pixels(loaded, flatten)
            upright = np.ascontiguousarray(apply_orientation(pixels, orientation))
            height, width, _ = upright.shape
            return ArrayImage(upright, height=height, width=width, mode=mode, max_value=max_value)
        return PillowImage(
            loaded, flatten=flatten, orientation=orientation, mode=mode, max_value=max_value
        )


def _to_pixels(image: Image.Image, flatten: Flatten) -> Pixels:
    """Return the pixels of an image in RGB; a large one is converted a few rows at a time."""
    if image.width * image.height <= STRIP_PIXELS:
        return np.asarray(flatten(image))
    return reduce_rows(
        lambda first, last: flatten(image.crop((0, first, image.width, last))),
        (image.height, image.width),
        1,
    )


def _to_array_image(decoded: DecodedImage, image_type: type[ArrayImage] = ArrayImage) -> ArrayImage:
    upright = apply_orientation(decoded.pixels, decoded.orientation)
    if decoded.pixels.size <= 3 * LARGE_PIXELS:
        upright = np.ascontiguousarray(upright)
    height, width, _ = upright.shape
    return image_type(
        upright,
        height=height,
        width=width,
        mode=decoded.mode,
        max_value=decoded.max_value,
        is_clipped=decoded.is_clipped,
    )


def _limit_memory(image: ImageFile.ImageFile) -> int:
    """Return the bytes that decoding needs; a large JPEG 2000 is decoded at half the size or less.

    Raises:
        DataError: It needs more than the limit.
    """
    entry = find_format(image.format or "")
    assert isinstance(entry, ImageFormat), "only plugins of known formats are tried"
    needed_bytes = image.width * image.height * entry.bytes_per_pixel
    if isinstance(image, Jpeg2KImageFile):
        levels = 0
        while needed_bytes > MAX_DECODE_BYTES:
            levels, needed_bytes = levels + 1, needed_bytes // 4
        image.reduce = levels  # type: ignore[assignment, unused-ignore]
    if needed_bytes <= MAX_DECODE_BYTES:
        return needed_bytes
    limit = MAX_DECODE_BYTES // entry.bytes_per_pixel
    raise DataError(
        f"too large: {image.width}x{image.height} is {image.width * image.height / 1e6:.0f} "
        f"megapixels; {entry.name} is read up to {limit / 1e6:.0f}"
    )


def _crop_to_aperture(path: Path, image: ImageFile.ImageFile) -> Image.Image:
    area: Area | None = None
    if image.format == "AVIF":
        area = find_clean_aperture(path, image.size)
    return image if area is None else image.crop(area)


def _keep(image: Image.Image) -> Image.Image:
    return image


def _flatten(image: Image.Image, *, key: Key | None) -> Image.Image:
    """Return a part of an image as RGB on white.

    Raises:
        DataError: The pixels have no standard range.
    """
    if image.mode == "F":
        raise DataError("32-bit float pixels have no standard range; convert to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return flatten_on_white(image, key)
    values: NDArray[np.int64] = np.asarray(image).astype(np.int64)
    eight_bit = np.clip(values >> 8, 0, 255).astype(np.uint8)
    if isinstance(key, int):
        eight_bit[values == key] = 255
    return Image.fromarray(eight_bit).convert("RGB")
