"""Reading of PNG images of 16 bits, of which Pillow keeps the upper 8 where there are colours."""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.bit_depth import (
    DecodedImage,
    SampleConverter,
    SampleType,
    allocate_pixels,
    choose_opacity_ranges,
    choose_range,
    composite_on_white,
)
from finetune.data.images.codecs.jpeg_header import read_orientation
from finetune.data.images.read_errors import check_size
from finetune.data.images.resample import Pixels
from finetune.types import PixelRange, ReadOptions

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOR, _GREY_ALPHA, _COLOR_ALPHA = 0, 2, 4, 6
_NUM_SAMPLES = {_GREY: 1, _COLOR: 3, _GREY_ALPHA: 2, _COLOR_ALPHA: 4}
_MODES = {_GREY: "I", _COLOR: "RGB", _GREY_ALPHA: "LA", _COLOR_ALPHA: "RGBA"}
_BYTES = {_GREY: 2, _COLOR: 8, _GREY_ALPHA: 4, _COLOR_ALPHA: 8}
"""Bytes of a pixel in Pillow's memory."""
_HEADER_BYTES = 33
"""Length of the signature and the IHDR chunk."""
_MAX_CHUNK_BYTES = 1024
_ROWS_AT_ONCE = 256
_MAX_VALUE = 65_535
_MIN_UPPER_BYTE = 64
"""Upper byte that takes more than 14 bits, whatever the lower one is."""


@dataclass(frozen=True, slots=True)
class _Header:
    """Header of a PNG of 16 bits.

    Attributes:
        width: Columns.
        height: Rows.
        color_type: PNG's number.
        significant_bits: Bits of the original, most of all channels; 16 if it is not stated.
        transparent: Value or colour that is transparent, in stored values; None for none.
    """

    width: int
    height: int
    color_type: int
    significant_bits: int
    transparent: tuple[int, ...] | None

    @property
    def has_alpha(self) -> bool:
        """Whether the last sample of a pixel is its opacity."""
        return self.color_type in (_GREY_ALPHA, _COLOR_ALPHA)


def read_png16(path: Path, options: ReadOptions) -> DecodedImage | None:
    """Return a PNG of 16 bits; None for any other file.

    A file whose sBIT chunk states fewer bits is read by what its writer meant: by the standard,
    samples are scaled to 16 bits; where they are not, white is the largest value of these bits.

    Args:
        path: Image file.
        options: Limit of pixels, and range of values.

    Raises:
        DataError: The image is too large.
        OSError: The data are damaged.
    """
    with path.open("rb") as file:
        header = _read_header(file)
    if header is None:
        return None
    check_size(header.width, header.height, options.max_pixels)
    depth = options.bit_depth
    pixels = allocate_pixels(
        header.height,
        header.width,
        3 + options.keeps_opacity,
        working_bytes=_BYTES[header.color_type],
        bit_depth=depth,
    )
    planes = _decode_planes(path, header, is_full_range=options.pixel_range is None and depth == 8)
    samples = SampleType(np.dtype(np.uint16), 16, _find_white(planes, header))
    colors = SampleConverter(samples, choose_range(samples, options.pixel_range), bit_depth=depth)
    opacity = SampleConverter(
        samples, _find_opacity_range(planes, header, samples, options), bit_depth=depth
    )
    for top, values in planes.iter_rows():
        rows = slice(top, top + len(values))
        num_colors = values.shape[2] - header.has_alpha
        pixels[rows, :, :3] = colors.convert(values[..., :num_colors])
        alpha = _get_alpha(values, header, opacity)
        if options.keeps_opacity:
            pixels[rows, :, 3] = np.iinfo(pixels.dtype).max if alpha is None else alpha
        elif alpha is not None:
            pixels[rows] = composite_on_white(pixels[rows], alpha, is_premultiplied=False)
    return DecodedImage(
        pixels=pixels,
        orientation=planes.orientation,
        mode=f"{_MODES[header.color_type]};16",
        max_value=int(colors.max_value) if samples.white is None else 0,
        is_clipped=colors.is_clipped,
    )


class _Planes:
    """Pixels of a PNG of 16 bits in images of 8 bits.

    Args:
        images: One of the upper bytes, and one of the lower unless these do not matter; or one with
            samples of 16 bits, or with both of their bytes side by side.
        orientation: EXIF orientation.
        is_split: Whether the upper bytes have an image of their own.
    """

    def __init__(
        self, images: Sequence[Image.Image], orientation: int, *, is_split: bool = False
    ) -> None:
        self._images = images
        self._is_split = is_split
        self.orientation = orientation

    def iter_rows(self) -> Iterator[tuple[int, NDArray[np.uint16]]]:
        """Yield the first row of a few, and their samples, uint16, shape (rows, columns, n)."""
        width, height = self._images[0].size
        for top in range(0, height, _ROWS_AT_ONCE):
            area = (0, top, width, min(top + _ROWS_AT_ONCE, height))
            parts = [np.asarray(image.crop(area)) for image in self._images]
            if self._is_split:
                samples: NDArray[np.uint16] = parts[0].astype(np.uint16)
                samples <<= 8
                samples |= parts[1] if len(parts) == 2 else 255
                yield top, samples
            elif parts[0].ndim == 2:
                yield top, parts[0].astype(np.uint16)[..., None]
            else:
                yield top, parts[0][..., ::2].astype(np.uint16) << 8 | parts[0][..., 1::2]


def _decode_planes(path: Path, header: _Header, *, is_full_range: bool) -> _Planes:
    """Return the pixels, decoded in full.

    Pillow unpacks colours to 8 bits. Read as little-endian, their lower bytes come first; grey and
    opacity of 16 bits are decoded as the four samples of 8 bits that they are made of.

    Args:
        path: PNG file.
        header: Its header.
        is_full_range: Whether the upper bytes suffice for the pixels.
    """
    if header.color_type == _GREY_ALPHA:
        with path.open("rb") as file:
            samples = cast("IO[bytes]", _FourSamples(file))
            with Image.open(samples, formats=("PNG",)) as image:
                image.load()
                return _Planes([image], read_orientation(image))
    with Image.open(path, formats=("PNG",)) as image:
        image.load()
        orientation = read_orientation(image)
    if header.color_type == _GREY:
        return _Planes([image], orientation)
    is_decided = header.transparent is None and header.significant_bits == 16
    if is_full_range and is_decided and _get_max_color(image) >= _MIN_UPPER_BYTE:
        return _Planes([image], orientation, is_split=True)
    with Image.open(path, formats=("PNG",)) as lower:
        raw_mode = f"{_MODES[header.color_type]};16L"
        lower.tile = [tile._replace(args=raw_mode) for tile in lower.tile]
        lower.load()
    return _Planes([image, lower], orientation, is_split=True)


class _FourSamples(io.RawIOBase):
    """PNG file of grey and opacity of 16 bits, whose header says four samples of 8 bits.

    Args:
        file: PNG file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        header = bytearray(file.read(_HEADER_BYTES))
        header[24:26] = 8, _COLOR_ALPHA
        header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
        self._header = bytes(header)
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        start = self._file.tell()
        data = self._file.read(size)
        return self._header[start : start + len(data)] + data[max(0, _HEADER_BYTES - start) :]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()


def _get_max_color(image: Image.Image) -> int:
    """Return the largest value of the first three samples."""
    extrema = image.getextrema()
    return max(int(high) for _, high in extrema[:3])  # type: ignore[misc]


def _get_alpha(
    values: NDArray[np.uint16], header: _Header, opacity: SampleConverter
) -> Pixels | None:
    """Return the opacity of some rows, shape (rows, columns); None if all is opaque."""
    if header.has_alpha:
        return opacity.convert(values[..., -1])
    white = opacity.convert(np.array([_MAX_VALUE], np.uint16))[0]
    if header.transparent is None:
        return None
    is_transparent = (values == np.array(header.transparent, np.uint16)).all(axis=2)
    return np.where(is_transparent, 0, white)


def _find_opacity_range(
    planes: _Planes, header: _Header, samples: SampleType, options: ReadOptions
) -> PixelRange:
    """Return the range of the opacity; its values are read only where they decide."""
    ranges = choose_opacity_ranges(samples, options.pixel_range)
    if not header.has_alpha or len(ranges) == 1:
        return ranges[-1]
    max_value = max(int(values[..., -1].max()) for _, values in planes.iter_rows())
    return next((choice for choice in ranges if max_value <= choice.high), ranges[-1])


def _find_white(planes: _Planes, header: _Header) -> int | None:
    """Return the value of white that sBIT states; None if it states nothing that holds.

    By the standard (W3C PNG, 12.4), samples of fewer bits are scaled to 16: by zeros or copies of
    the upper bits below them, or by a factor. Many writers leave them as they are.
    """
    num_bits = header.significant_bits
    if num_bits >= 16:
        return None
    values = np.arange(_MAX_VALUE + 1, dtype=np.int64)
    upper, largest = values >> (16 - num_bits), 2**num_bits - 1
    copied = upper << (16 - num_bits) | upper << 16 >> num_bits >> num_bits
    scaled = np.rint(np.rint(values * largest / _MAX_VALUE) * _MAX_VALUE / largest)
    is_possible = np.stack([upper << (16 - num_bits) == values, copied == values, scaled == values])
    is_scaled, max_value = np.ones(len(is_possible), bool), 0
    for _, part in planes.iter_rows():
        found = np.unique(part[..., : part.shape[2] - header.has_alpha])
        is_scaled &= is_possible[:, found].all(axis=1)
        max_value = max(max_value, int(found[-1]))
    if is_scaled.any():
        return _MAX_VALUE
    return largest if max_value <= largest else None


def _read_header(file: BinaryIO) -> _Header | None:
    """Return the header of a PNG of 16 bits; None for any other file."""
    start = file.read(_HEADER_BYTES)
    if not start.startswith(_SIGNATURE) or len(start) < _HEADER_BYTES or start[24] != 16:
        return None
    width, height, _, color_type = struct.unpack(">IIBB", start[16:26])
    if color_type not in _NUM_SAMPLES:
        return None
    chunks = dict(_iter_chunks(file))
    bits = chunks.get(b"sBIT", b"")[: _NUM_SAMPLES[color_type]]
    key, num_colors = chunks.get(b"tRNS", b""), _NUM_SAMPLES[color_type]
    has_key = color_type in (_GREY, _COLOR) and len(key) == 2 * num_colors
    return _Header(
        width=width,
        height=height,
        color_type=color_type,
        significant_bits=max(bits) if bits and 0 < max(bits) < 16 else 16,
        transparent=struct.unpack(f">{num_colors}H", key) if has_key else None,
    )


def _iter_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kinds and contents of small chunks before the pixels."""
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"IEND"):
            return
        if length <= _MAX_CHUNK_BYTES:
            yield kind, file.read(length)
            file.seek(4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)
