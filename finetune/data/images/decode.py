"""Decoding of an image file of any format, mode and orientation to RGB pixels, by Pillow.

JPEGs are decoded by ``lazy_image``, no larger than a crop needs, where simplejpeg can.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from finetune.errors import DataError
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions

_EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# check_size reports large images; Pillow's warnings come once per worker and name no file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)


def decode_image(path: Path, *, options: ReadOptions = DEFAULT_READ_OPTIONS) -> Image.Image:
    """Return the first frame as an upright 8-bit RGB image.

    The EXIF orientation is applied; gray, palette and CMYK are converted; transparent pixels are
    composited on white, as viewers do; 16-bit samples keep their upper 8 bits.

    Args:
        path: Image file.
        options: How image files are read.

    Raises:
        DataError: The file cannot be used; the message is the reason without the path.
    """
    with translate_decode_errors(path), Image.open(path) as image:
        check_size(image.width, image.height, options.max_pixels)
        image.load()  # a damaged file raises here, not while its EXIF data are read
        return _to_rgb(_apply_orientation(image))


def check_image(path: Path, *, options: ReadOptions = DEFAULT_READ_OPTIONS) -> str | None:
    """Return why a file cannot be used for training, or None; the whole file is read.

    JPEGs are decoded at 1/8 scale, which detects damage in half the time.
    """
    try:
        with translate_decode_errors(path), Image.open(path) as image:
            check_size(image.width, image.height, options.max_pixels)
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            _check_mode(image)
            _apply_orientation(image)
    except DataError as error:
        return str(error)
    return None


@contextmanager
def translate_decode_errors(path: Path) -> Iterator[None]:
    """Translate the exceptions of reading an image file.

    Args:
        path: Image file that is read in the block.

    Raises:
        DataError: The file cannot be used; the message is the reason without the path.
    """
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError("too large: over Pillow's decompression bomb limit") from None
    except Exception as error:  # plugins raise various exceptions for damaged files
        raise DataError(describe_read_error(path, error)) from error


def to_upright_grayscale(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an opened image upright and in grayscale, and whether width and height were swapped.

    Raises:
        DataError: The mode of the image is not supported.
    """
    image.load()  # a damaged file raises here, not while its EXIF data are read
    orientation = read_orientation(image)
    transpose = _EXIF_TRANSPOSES.get(orientation)
    gray = image if image.mode == "L" else _to_rgb(image).convert("L")
    return gray if transpose is None else gray.transpose(transpose), orientation >= 5


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Check the number of pixels of an image.

    Raises:
        DataError: The image has more than ``max_pixels`` pixels.
    """
    pixels = width * height
    if pixels > max_pixels:
        raise DataError(
            f"too large: {width}x{height} is {pixels / 1e6:.0f} megapixels, over "
            f"data.max_megapixels={max_pixels / 1e6:g}"
        )


def describe_read_error(path: Path, error: Exception) -> str:
    """Return the reason for an exception of Pillow or the system in plain words."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "not readable (permission denied)"
    if isinstance(error, OSError) and path.is_file() and path.stat().st_size == 0:
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image: unrecognised content"
    if "truncated" in str(error).lower():
        return "truncated"
    return f"damaged ({error})"


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none that can be read."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data raise various exceptions
        return 1
    return next((number for number in _EXIF_TRANSPOSES if number == orientation), 1)


def _apply_orientation(image: Image.Image) -> Image.Image:
    """Return the image upright; damaged EXIF data are ignored, as viewers do.

    Pillow's ``exif_transpose`` raises if it cannot write the other tags again.
    """
    transpose = _EXIF_TRANSPOSES.get(read_orientation(image))
    return image.copy() if transpose is None else image.transpose(transpose)


def _check_mode(image: Image.Image) -> None:
    if image.mode == "F":
        raise DataError("32-bit float pixels have no standard range; convert to 8 or 16 bits")


def _to_rgb(image: Image.Image) -> Image.Image:
    _check_mode(image)
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values: NDArray[np.int64] = np.asarray(image).astype(np.int64)
    max_value = int(values.max(initial=0))
    # mode "I" has 32 bits, but contains the values of 8- or 16-bit files
    eight_bit = values if image.mode == "I" and max_value <= 255 else values >> 8
    return Image.fromarray(np.clip(eight_bit, 0, 255).astype(np.uint8)).convert("RGB")
