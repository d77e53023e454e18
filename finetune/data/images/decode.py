"""Reads one image file to RGB pixels, whatever its format, mode or rotation."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from finetune.errors import DataError

# Pillow itself refuses twice this many, and warns at half of that
DEFAULT_MAX_PIXELS = 178_000_000

_EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Our own limit speaks below; Pillow's warnings would come once a worker and name no file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)


def decode_image(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Return the first frame as an upright 8-bit RGB image.

    EXIF rotation is applied; grey, palette and CMYK are converted; transparency lies on white, as
    a viewer shows it; 16-bit samples keep their upper 8 bits.

    Raises:
        DataError: The reason for which the file cannot be used, without its path.
    """
    with translate_decode_errors(path), Image.open(path) as image:
        check_size(image.width, image.height, max_pixels)
        image.load()  # a damaged file fails here, and not inside the reading of its EXIF data
        return _to_rgb(_apply_orientation(image))


def check_image(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> str | None:
    """Return why a file cannot be trained on, or None; reads it to its end.

    JPEGs are decoded at an eighth of their size, which finds damage at half the price.
    """
    try:
        with translate_decode_errors(path), Image.open(path) as image:
            check_size(image.width, image.height, max_pixels)
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            _check_mode(image)
            _apply_orientation(image)
    except DataError as error:
        return str(error)
    return None


@contextmanager
def translate_decode_errors(path: Path) -> Iterator[None]:
    """Say in plain words why a file cannot be used that is read in the block.

    Raises:
        DataError: The reason, without the path.
    """
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError("too large: a decompression bomb by Pillow's own limit") from None
    except Exception as error:  # each format's plugin raises what it likes for damaged files
        raise DataError(describe_read_error(path, error)) from error


def to_upright_grayscale(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an opened image upright and grey, and whether its width and height changed places.

    Raises:
        DataError: Its mode cannot be trained on.
    """
    image.load()  # a damaged file fails here, and not inside the reading of its EXIF data
    orientation = read_orientation(image)
    turn = _EXIF_TRANSPOSES.get(orientation)
    grey = image if image.mode == "L" else _to_rgb(image).convert("L")
    return grey if turn is None else grey.transpose(turn), orientation >= 5


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image of too many pixels.

    Raises:
        DataError: It has more than ``max_pixels``.
    """
    pixels = width * height
    if pixels > max_pixels:
        raise DataError(
            f"too large: {width}x{height} is {pixels / 1e6:.0f} megapixels, over "
            f"data.max_megapixels={max_pixels / 1e6:g}"
        )


def describe_read_error(path: Path, error: Exception) -> str:
    """Return the reason in plain words for what Pillow or the system raised."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, OSError) and path.is_file() and path.stat().st_size == 0:
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, whatever its name says"
    if "truncated" in str(error).lower():
        return "truncated"
    return f"damaged ({error})"


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data raise what they like
        return 1
    return next((number for number in _EXIF_TRANSPOSES if number == found), 1)


def _apply_orientation(image: Image.Image) -> Image.Image:
    """Return the image as it was held; damaged EXIF data, which no viewer minds, turn nothing.

    Pillow's own ``exif_transpose`` fails where it cannot write the other tags again.
    """
    turn = _EXIF_TRANSPOSES.get(read_orientation(image))
    return image.copy() if turn is None else image.transpose(turn)


def _check_mode(image: Image.Image) -> None:
    if image.mode == "F":
        raise DataError("32-bit float pixels have no agreed range; convert to 8 or 16 bits")


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
    high = int(values.max(initial=0))
    # mode "I" has 32 bits, but holds what 8- or 16-bit files say
    eight_bit = values if image.mode == "I" and high <= 255 else values >> 8
    return Image.fromarray(np.clip(eight_bit, 0, 255).astype(np.uint8)).convert("RGB")
