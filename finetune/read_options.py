"""Settings of reading image files: channels, bits, range of values, and the limit of pixels."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PixelRange:
    """Values of black and white in images of more than 8 bits; values beyond them are clipped.

    Attributes:
        low: Value that becomes 0.
        high: Value that becomes 255, above ``low``.
    """

    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> "PixelRange":
        """Return the range written as LOW:HIGH, as ``str`` writes it.

        Raises:
            ValueError: It is no such text, or LOW is not below HIGH.
        """
        low, _, high = text.partition(":")
        bounds = cls(float(low), float(high))
        if not -math.inf < bounds.low < bounds.high < math.inf:
            raise ValueError(f"'{text}' is not LOW:HIGH with LOW below HIGH")
        return bounds

    def __str__(self) -> str:
        return f"{_format_bound(self.low)}:{_format_bound(self.high)}"

    @property
    def num_bits(self) -> int | None:
        """Bits n of a range from 0 to 2^n - 1, from 8 on; None for any other range."""
        n = int(self.high + 1).bit_length() - 1
        is_power = self.low == 0 and n >= 8 and self.high + 1 == 2**n
        return n if is_power else None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Settings of reading image files; the file alone decides what they leave open.

    Attributes:
        max_pixels: Number of pixels above which an image is rejected.
        pixel_range: Range of images of more than 8 bits; None takes the whole range of each file's
            unsigned integers, and rejects signed integers, more than 16 bits and floats.
        num_channels: Channels C of an image: 1 grey, 2 grey and opacity, 3 RGB on white, 4 RGB and
            opacity; any number of bands of a TIFF.
        bit_depth: Bits of a channel that are kept, 8 or 16.
    """

    max_pixels: int = 178_000_000
    pixel_range: PixelRange | None = None
    num_channels: int = 3
    bit_depth: int = 8

    @property
    def is_rgb(self) -> bool:
        """Whether images are read as RGB of 8 bits."""
        return self.num_channels == 3 and self.bit_depth == 8

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel."""
        return self.num_channels * self.bit_depth // 8

    @property
    def keeps_opacity(self) -> bool:
        """Whether opacity is a channel, instead of transparent pixels on white."""
        return self.num_channels in (2, 4)

    @property
    def pixel_tag(self) -> str:
        """Suffix of the names of stores whose content depends on it; empty for plain RGB."""
        pixels = "" if self.is_rgb else f"-{self.num_channels}x{self.bit_depth}"
        return pixels + (
            "" if self.pixel_range is None else f"-{self.pixel_range}".replace(":", "..")
        )


DEFAULT_READ_OPTIONS = ReadOptions()


def _format_bound(value: float) -> str:
    """Return a bound of a range in full, integers without a decimal point."""
    return str(int(value)) if value == int(value) else repr(value)
