"""Conversion of Pillow's images of 8 bits to RGB, with transparent pixels on white."""

from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from finetune.errors import DataError

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")

Key = int | bytes | tuple[int, int, int]
"""Transparent grey value, colour, or palette entries as in a PNG's tRNS chunk."""


def read_transparent_key(path: Path, image: Image.Image) -> Key | None:
    """Return what is transparent in an image, in the values of its pixels; None for nothing.

    Pillow returns a PNG's transparent value as stored, but scales pixels of 1, 2 and 4 bits to 255
    and colours of 16 bits to 8. Of the 16 stored bits only those of the pixels count (W3C PNG,
    11.3.1.1).
    """
    key = cast("Key | None", image.info.get("transparency"))
    if image.format != "PNG" or key is None or image.mode == "P":
        return key
    with path.open("rb") as file:
        num_bits = file.read(25)[24]  # in the IHDR chunk, which is the first
    mask = (1 << num_bits) - 1
    if isinstance(key, tuple):
        shift = max(0, num_bits - 8)
        red, green, blue = ((value & mask) >> shift for value in key)
        return red, green, blue
    if isinstance(key, int):
        return (key & mask) * 255 // mask if num_bits < 8 else key & mask
    return key


def flatten_on_white(image: Image.Image, key: Key | None = None) -> Image.Image:
    """Return a part of an image of 8-bit samples as RGB, its transparent pixels on white.

    Args:
        image: Image in any of Pillow's modes of 8 bits, or of 1 bit.
        key: What is transparent, as ``read_transparent_key`` returns it.
    """
    image.info.pop("transparency", None)  # Pillow would apply its own reading of it
    if isinstance(key, bytes) or (key is not None and image.mode == "P"):
        image.info["transparency"] = key
        return _composite(image.convert("RGBA"))
    if image.mode in _ALPHA_MODES:
        if image.mode == "La":
            image = image.convert("LA")
        return _composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if key is None:
        return rgb
    pixels = np.array(rgb)
    pixels[(pixels == np.asarray(key, np.uint8)).all(axis=-1)] = 255
    return Image.fromarray(pixels)


def convert_to_rgba(image: Image.Image, key: Key | None = None) -> Image.Image:
    """Return a part of an image of 8-bit samples as RGBA, see ``flatten_on_white``."""
    if image.mode.startswith(("I", "F")):
        raise DataError(f"pixels of mode {image.mode} have no opacity; save them as PNG or TIFF")
    image.info.pop("transparency", None)
    if isinstance(key, bytes) or (key is not None and image.mode == "P"):
        image.info["transparency"] = key
        return image.convert("RGBA")
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if key is None or image.mode in _ALPHA_MODES:
        return rgba
    pixels = np.array(rgba)
    pixels[(pixels[..., :3] == np.asarray(key, np.uint8)).all(axis=-1), 3] = 0
    return Image.fromarray(pixels)


def _composite(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
