"""Choice of the reader of an image whose samples Pillow does not return as they are."""

from pathlib import Path

from finetune.data.images.bit_depth import DecodedImage
from finetune.data.images.codecs.netpbm import read_netpbm
from finetune.data.images.codecs.png16 import read_png16
from finetune.data.images.codecs.tiff import is_tiff, read_tiff
from finetune.types import ReadOptions


def read_deep_image(path: Path, start: bytes, options: ReadOptions) -> DecodedImage | None:
    """Return an image of more than 8 bits, or of a TIFF layout that Pillow misreads.

    Args:
        path: Image file.
        start: Its first bytes.
        options: Limit of pixels, and range of values.

    Returns:
        The image; None for one that Pillow reads right.

    Raises:
        DataError: The layout or the values are not supported, or the image is too large.
        Exception: The data are damaged; various, as libraries raise them.
    """
    if is_tiff(start):
        return read_tiff(path, options)
    if start.startswith(b"\x89PNG"):
        return read_png16(path, options)
    return read_netpbm(path, options) if start.startswith(b"P") else None
