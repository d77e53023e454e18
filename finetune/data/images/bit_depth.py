"""Conversion of samples of any bit depth to 8 bits, or to 16 with ``data.bit_depth=16``.

One rule for all formats: black is 0 and white the largest value of the file's bits, unless the
dataset has a range of its own. It never depends on the values of a single image.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.images.memory import BUDGET
from finetune.data.images.resample import Pixels
from finetune.errors import DataError
from finetune.types import PixelRange
from finetune.units import format_bytes

STANDARD_BITS = (8, 10, 12, 14, 16)
"""Bit depths of sensors, of which a dataset of 16-bit files gets the smallest sufficient one."""

MAX_DECODE_BYTES = 900_000_000
"""Most memory that decoding one image may need."""

_LOOKUP_BITS = 16


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Image decoded in full from samples of any depth.

    Attributes:
        pixels: RGB as stored, before the orientation is applied, uint8 or uint16, shape (H, W, 3);
            (H, W, 4) with the opacity where it is kept.
        orientation: 1 to 8, as in EXIF.
        mode: Mode in Pillow's manner, with the bits where they are not 8.
        max_value: Largest sample of an image of more than 8 bits whose range a dataset decides; 0
            for other images.
        is_clipped: Whether a sample of any type is above the range that it was read with.
    """

    pixels: Pixels
    orientation: int
    mode: str
    max_value: int = 0
    is_clipped: bool = False


@dataclass(frozen=True, slots=True)
class SampleType:
    """Type of a file's samples.

    Attributes:
        dtype: Type of the values in memory, in native byte order.
        num_bits: Bits of a stored sample, at most those of ``dtype``.
        white: Value of white that the file states, such as 4095; None if it states none but the
            number of stored bits.
    """

    dtype: np.dtype[Any]
    num_bits: int
    white: int | None = None

    @property
    def is_unsigned_up_to_16_bits(self) -> bool:
        """Whether the bits alone say what black and white are."""
        return self.dtype.kind == "u" and self.num_bits <= 16

    @property
    def states_its_bits(self) -> bool:
        """Whether the file says what white is; 16-bit files often contain fewer bits."""
        return self.white is not None or (self.dtype.kind == "u" and self.num_bits < 16)

    def describe(self) -> str:
        """Return the type in words, such as "32-bit float"."""
        kinds = {"u": "unsigned integer", "i": "signed integer", "f": "float"}
        return f"{self.num_bits}-bit {kinds[self.dtype.kind]}"


def choose_range(samples: SampleType, pixel_range: PixelRange | None) -> PixelRange:
    """Return the values of black and white of an image.

    A range of whole bits, 0 to 2^n - 1, is for files that do not state their bits; any other range
    is a window that applies to all images of more than 8 bits.

    Raises:
        DataError: The values have no agreed range, and none is given.
    """
    if samples.dtype.kind == "u" and samples.num_bits <= 8:
        return PixelRange(0, 2**samples.num_bits - 1)
    is_window = pixel_range is not None and pixel_range.num_bits is None
    if pixel_range is not None and (is_window or not samples.states_its_bits):
        return pixel_range
    if not samples.is_unsigned_up_to_16_bits:
        raise DataError(
            f"{samples.describe()} pixels have no agreed range; set data.pixel_range to the values "
            f"of black and white (LOW:HIGH)"
        )
    return PixelRange(0, 2**samples.num_bits - 1 if samples.white is None else samples.white)


def choose_opacity_ranges(
    samples: SampleType, pixel_range: PixelRange | None
) -> tuple[PixelRange, ...]:
    """Return the ranges that the opacity of an image may have, the smallest first.

    It is that of the colours where these have whole bits and all of its values are in it; otherwise
    that of all bits: a window is for colours.

    Raises:
        DataError: The values have no agreed range, and none is given.
    """
    colors = choose_range(samples, pixel_range)
    if not samples.is_unsigned_up_to_16_bits:
        return (colors,)
    full = PixelRange(0, 2**samples.num_bits - 1)
    return (full,) if colors.num_bits is None or colors.high >= full.high else (colors, full)


class SampleConverter:
    """Conversion of the samples of an image to 8 or 16 bits, block by block.

    Args:
        samples: Type of the samples.
        value_range: Values of black and white.
        bit_depth: Bits of the result.

    Attributes:
        max_value: Largest value so far.
    """

    def __init__(self, samples: SampleType, value_range: PixelRange, *, bit_depth: int = 8) -> None:
        self.max_value: float = 0
        self._range = value_range
        self._scale = scale_to_8_bits if bit_depth == 8 else scale_to_16_bits
        self._table: Pixels | None = None
        if samples.is_unsigned_up_to_16_bits:
            values = np.arange(2 ** min(samples.num_bits, _LOOKUP_BITS), dtype=np.uint16)
            self._table = self._scale(values, value_range)

    @property
    def is_clipped(self) -> bool:
        """Whether a value so far is above the range."""
        return self.max_value > self._range.high

    def check(self) -> None:
        """Check that the range suits the values of all blocks so far.

        Raises:
            DataError: Floats from 0 to 1 would become black.
        """
        if self._table is None and 0 < self.max_value <= 1 and self._range.high >= 255:
            raise DataError(
                f"float pixels are black in the range of data.pixel_range; train with their range "
                f"(up to {self.max_value:g}, not {self._range})"
            )

    def convert(self, samples: NDArray[Any]) -> Pixels:
        """Return samples of any shape as uint8 or uint16 of the same shape."""
        if samples.size:
            self.max_value = max(self.max_value, float(np.fmax.reduce(samples, axis=None)))
        if self._table is None:
            return self._scale(samples, self._range)
        converted: Pixels = self._table[samples]
        return converted


def scale_to_8_bits(samples: NDArray[Any], value_range: PixelRange) -> Pixels:
    """Return samples scaled linearly from a range to 0 to 255, clipped, uint8 of the same shape.

    Integers are divided into 256 intervals of the same length, so that n bits keep their upper 8;
    fewer than 8 bits are spread from 0 to 255. NaN becomes 0.
    """
    low, span = value_range.low, value_range.high - value_range.low
    values = samples.astype(np.float64) - low
    if samples.dtype.kind in "ui" and span >= 255:
        scaled = np.floor(values * (256 / (span + 1)))
    else:
        scaled = np.floor(values * (255 / span) + 0.5)
    pixels: Pixels = np.nan_to_num(np.clip(scaled, 0, 255), nan=0).astype(np.uint8)
    return pixels


def scale_to_16_bits(samples: NDArray[Any], value_range: PixelRange) -> Pixels:
    """Return samples scaled linearly from a range to 0 to 65535, clipped, uint16 of the same shape.

    NaN becomes 0.
    """
    low, span = value_range.low, value_range.high - value_range.low
    scaled = np.rint((samples.astype(np.float64) - low) * (65_535 / span))
    pixels: Pixels = np.nan_to_num(np.clip(scaled, 0, 65_535), nan=0).astype(np.uint16)
    return pixels


def composite_on_white(color: Pixels, alpha: Pixels, *, is_premultiplied: bool) -> Pixels:
    """Return colours on a white background.

    Args:
        color: Colours, uint8 or uint16, shape (H, W, C).
        alpha: Opacity of the same type, shape (H, W).
        is_premultiplied: Whether the colours are already multiplied by the opacity.
    """
    white = int(np.iinfo(color.dtype).max)
    # the sum is at most white * white, and is rounded to the nearest
    wide = np.uint16 if white == 255 else np.uint64
    opacity = alpha[..., None].astype(wide)
    transparency = white - opacity
    if is_premultiplied:
        return np.asarray(np.minimum(color + transparency, white), color.dtype)
    return np.asarray((color * opacity + white * transparency + white // 2) // white, color.dtype)


def allocate_pixels(
    height: int,
    width: int,
    num_channels: int = 3,
    *,
    working_bytes: int = 0,
    bit_depth: int = 8,
) -> Pixels:
    """Return zeros for an image, shape (H, W, C), once there is memory to decode it.

    Args:
        height: Rows.
        width: Columns.
        num_channels: Channels of a pixel that are kept.
        working_bytes: Further bytes of a pixel that are needed while it is decoded.
        bit_depth: Bits of a channel: 8 for uint8, 16 for uint16.

    Raises:
        DataError: It would need more than the limit of one image.
    """
    num_bytes = height * width * (num_channels * bit_depth // 8 + working_bytes)
    if num_bytes > MAX_DECODE_BYTES:
        raise DataError(
            f"too large: decoding {width}x{height} pixels of more than 8 bits needs "
            f"{format_bytes(num_bytes)}, over the limit of {format_bytes(MAX_DECODE_BYTES)}"
        )
    dtype = np.uint8 if bit_depth == 8 else np.uint16
    pixels: Pixels = np.zeros((height, width, num_channels), dtype)  # pages are used once written
    BUDGET.reserve(pixels, num_bytes)
    return pixels


@dataclass(frozen=True, slots=True)
class DatasetBits:
    """Bits of the values of a dataset's 16-bit files that do not state them.

    Attributes:
        num_images: Number of such files.
        max_value: Largest of their values.
    """

    num_images: int
    max_value: int

    @property
    def num_bits(self) -> int:
        """Smallest of 8, 10, 12, 14 and 16 bits that holds all values."""
        return next(n for n in STANDARD_BITS if self.max_value < 2**n)

    @property
    def pixel_range(self) -> PixelRange | None:
        """Range that all files are read with; None for that of 16 bits."""
        return None if self.num_bits == 16 else PixelRange(0, 2**self.num_bits - 1)

    def to_json(self) -> dict[str, int]:
        """Return JSON values."""
        return {
            "num_images": self.num_images,
            "max_value": self.max_value,
            "num_bits": self.num_bits,
        }

    @classmethod
    def from_max_values(cls, max_values: NDArray[Any]) -> "DatasetBits | None":
        """Return the bits of a dataset; None if it has no such file, or only black ones.

        Args:
            max_values: Largest value of each such image, 0 for other images, shape (N,).
        """
        num_images = int(np.count_nonzero(max_values))
        return cls(num_images, int(max_values.max())) if num_images else None
