"""Bit depth of JPEG 2000 files, of which Pillow returns more than 8 bits in grey only.

Colours are rounded to 8 bits without a limit there: the white of 16 bits becomes 256, which is 0.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.bit_depth import SampleConverter, SampleType, choose_range
from finetune.data.images.resample import Pixels
from finetune.errors import DataError
from finetune.types import PixelRange

_CODESTREAM = b"\xff\x4f\xff\x51"
"""Markers SOC and SIZ, with which each codestream begins."""
_NUM_COMPONENTS_OFFSET = 40
_MAX_BITS = 16


@dataclass(frozen=True, slots=True)
class DeepJpeg2000:
    """Grey JPEG 2000 of more than 8 bits, which Pillow shifts to the upper ones of 16.

    Attributes:
        samples: Type of the samples.
        value_range: Values of black and white.
    """

    samples: SampleType
    value_range: PixelRange

    def get_max_value(self, image: Image.Image) -> int:
        """Return the largest sample of a decoded image; 0 if the file states fewer than 16 bits."""
        return 0 if self.samples.states_its_bits else int(np.max(np.asarray(image)))

    def flatten(self, part: Image.Image) -> Image.Image:
        """Return a part of the decoded image as RGB of 8 bits."""
        pixels = SampleConverter(self.samples, self.value_range).convert(self._shift(part))
        return Image.fromarray(pixels).convert("RGB")

    def convert_to_16_bits(self, image: Image.Image) -> Pixels:
        """Return the decoded image as grey in RGB, uint16, shape (H, W, 3)."""
        converter = SampleConverter(self.samples, self.value_range, bit_depth=16)
        return np.repeat(converter.convert(self._shift(image))[..., None], 3, axis=2)

    def _shift(self, part: Image.Image) -> NDArray[np.uint16]:
        values: NDArray[np.uint16] = np.asarray(part).astype(np.uint16, copy=False)
        return np.right_shift(values, np.uint16(_MAX_BITS - self.samples.num_bits))


def read_depth(
    path: Path, image: Image.Image, pixel_range: PixelRange | None
) -> DeepJpeg2000 | None:
    """Return how an image of more than 8 bits is converted; None for one of at most 8.

    Args:
        path: JPEG 2000 file.
        image: The same, opened by Pillow.
        pixel_range: Values of black and white of the dataset.

    Raises:
        DataError: Pillow does not return the samples as they are.
    """
    with path.open("rb") as file:
        precisions = _read_precisions(file)
    if not precisions:
        return None  # damaged, which raises where it is decoded
    if precisions[0] & 0x80:
        raise DataError("JPEG 2000 of signed samples, which are not supported; store it as TIFF")
    num_bits = 1 + max(precision & 0x7F for precision in precisions)
    if num_bits <= 8:
        return None
    if num_bits > _MAX_BITS or image.mode != "I;16":
        raise DataError(
            f"JPEG 2000 of {num_bits}-bit samples in mode {image.mode}: more than 8 bits are read "
            f"in grey only, up to 16; convert it to PNG or TIFF"
        )
    samples = SampleType(np.dtype(np.uint16), num_bits)
    return DeepJpeg2000(samples, choose_range(samples, pixel_range))


def _read_precisions(file: BinaryIO) -> bytes:
    """Return for each component its bits - 1, plus 128 if it is signed; empty if damaged."""
    if not _seek_codestream(file):
        return b""
    head = file.read(_NUM_COMPONENTS_OFFSET + 2)
    if not head.startswith(_CODESTREAM) or len(head) < _NUM_COMPONENTS_OFFSET + 2:
        return b""
    num_components = int.from_bytes(head[_NUM_COMPONENTS_OFFSET:], "big")
    return file.read(3 * num_components)[::3]


def _seek_codestream(file: BinaryIO) -> bool:
    """Move to the first codestream, of a file of boxes or on its own; return whether there is."""
    if file.read(4) == _CODESTREAM:
        file.seek(0)
        return True
    file.seek(0)
    while len(head := file.read(8)) == 8:
        length, kind, header_bytes = int.from_bytes(head[:4], "big"), head[4:], 8
        if length == 1:
            length, header_bytes = int.from_bytes(file.read(8), "big"), 16
        if kind == b"jp2c":
            return True
        if not header_bytes <= length < 2**62:
            return False
        file.seek(length - header_bytes, io.SEEK_CUR)
    return False
