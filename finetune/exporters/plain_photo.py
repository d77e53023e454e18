"""Ordinary photos opened by Pillow alone, as users of an exported file open them.

What finetune decodes by other code, or turns and converts by its own, is thereby part of what an
export is compared on.
"""

from pathlib import Path

from PIL import Image, ImageOps

from finetune.types import ReadOptions

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_MODES = ("RGB", "L")

_MAX_PIXELS = 40_000_000
"""Pixels above which finetune opens an image at a reduced size."""


def open_plain_photo(path: Path, options: ReadOptions) -> Image.Image | None:
    """Return the upright photo of a file in RGB; None for a file that is not an ordinary photo.

    Files with opacity, more than 8 bits, CMYK or several frames, damaged ones, and models of other
    channels need choices that are finetune's own.

    Args:
        path: Image file.
        options: How image files are read.
    """
    if not options.is_rgb:
        return None
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if not _is_plain(image):
                return None
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow raises errors of many types; finetune's own reading names the reason
        return None


def _is_plain(image: Image.Image) -> bool:
    """Return whether a file holds one opaque image of 8 bits in RGB or grey."""
    has_16_bits = any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    return (
        image.mode in _MODES
        and "transparency" not in image.info
        and getattr(image, "n_frames", 1) == 1
        and image.width * image.height <= _MAX_PIXELS
        and not (image.format == "PNG" and has_16_bits)
    )
