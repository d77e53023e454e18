"""Reading of netpbm images of more than 8 bits: PGM and PPM with a large maxval, and PFM.

Pillow stretches them to 16 bits, pixel by pixel in Python for binary PPM.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from finetune.data.images.bit_depth import (
    DecodedImage,
    SampleConverter,
    SampleType,
    allocate_pixels,
    choose_range,
)
from finetune.data.images.read_errors import check_size
from finetune.errors import DataError
from finetune.types import ReadOptions

_NUM_SAMPLES = {b"P2": 1, b"P3": 3, b"P5": 1, b"P6": 3, b"Pf": 1, b"PF": 3}
_TEXT_KINDS, _FLOAT_KINDS = (b"P2", b"P3"), (b"Pf", b"PF")
_HEADER = re.compile(rb"(P[2356fF])((?:\s|#[^\n]*\n)+\S+){3}\s")
_MAX_HEADER_BYTES = 4096
_MAX_MAXVAL = 65_535
_CHUNK_VALUES = 2**22


def read_netpbm(path: Path, options: ReadOptions) -> DecodedImage | None:
    """Return a netpbm image of more than 8 bits; None for any other file.

    Args:
        path: Image file.
        options: Limit of pixels, and range of values.

    Raises:
        DataError: The file is truncated, or its values have no agreed range.
    """
    with path.open("rb") as file:
        header = _HEADER.match(file.read(_MAX_HEADER_BYTES))
        if header is None:
            return None
        kind = header[1]
        fields = re.sub(rb"#[^\n]*\n", b" ", header[0]).split()[1:]
        try:
            width, height = int(fields[0]), int(fields[1])
            maximum = float(fields[2]) if kind in _FLOAT_KINDS else int(fields[2])
        except ValueError:
            return None
        if kind not in _FLOAT_KINDS and not 255 < maximum <= _MAX_MAXVAL:
            return None
        check_size(width, height, options.max_pixels)
        file.seek(header.end())
        num_samples = _NUM_SAMPLES[kind]
        chunks: Iterator[NDArray[Any]]
        if kind in _FLOAT_KINDS:
            samples = SampleType(np.dtype(np.float32), 32)
            chunks = _read_floats(file, (height, width * num_samples), "<" if maximum < 0 else ">")
        else:
            white = None if maximum == _MAX_MAXVAL else int(maximum)
            samples = SampleType(np.dtype(np.uint16), 16, white)
            read = _read_text if kind in _TEXT_KINDS else _read_binary
            chunks = read(file, height * width * num_samples)
        depth = options.bit_depth
        value_range = choose_range(samples, options.pixel_range)
        converter = SampleConverter(samples, value_range, bit_depth=depth)
        working_bytes = depth // 8 if num_samples == 1 else 0
        pixels = allocate_pixels(height, width, working_bytes=working_bytes, bit_depth=depth)
        values = pixels if num_samples == 3 else np.empty((height, width, 1), pixels.dtype)
        flat, first = values.reshape(-1), 0
        for chunk in chunks:
            flat[first : first + len(chunk)] = converter.convert(chunk)
            first += len(chunk)
    pixels[...] = values
    converter.check()
    is_open = samples.dtype.kind == "u" and samples.white is None
    return DecodedImage(
        pixels=pixels,
        orientation=1,
        mode="RGB;16" if num_samples == 3 else "F" if samples.dtype.kind == "f" else "I;16",
        max_value=int(converter.max_value) if is_open else 0,
        is_clipped=converter.is_clipped,
    )


def _read_binary(file: BinaryIO, num_values: int) -> Iterator[NDArray[np.uint16]]:
    """Yield the values of a binary file, most significant byte first."""
    for first in range(0, num_values, _CHUNK_VALUES):
        wanted = 2 * min(_CHUNK_VALUES, num_values - first)
        data = file.read(wanted)
        if len(data) < wanted:
            raise DataError("truncated PNM")
        yield np.frombuffer(data, ">u2").astype(np.uint16)


def _read_text(file: BinaryIO, num_values: int) -> Iterator[NDArray[np.uint16]]:
    """Yield the values of a text file."""
    remaining, rest = num_values, b""
    while remaining:
        data = file.read(_CHUNK_VALUES)
        text = re.sub(rb"#[^\n]*", b"", rest + data)
        # the last word may go on in the next chunk
        cut = max(text.rfind(b" "), text.rfind(b"\n")) + 1 if data else len(text)
        words, rest = text[:cut].split()[:remaining], text[cut:]
        if not words and not data:
            raise DataError("truncated PNM")
        try:
            yield np.array(words, np.int64).clip(0, _MAX_MAXVAL).astype(np.uint16)
        except ValueError:
            raise DataError("damaged PNM: a value is not a number") from None
        remaining -= len(words)


def _read_floats(
    file: BinaryIO, shape: tuple[int, int], byte_order: str
) -> Iterator[NDArray[np.float32]]:
    """Yield the values of a PFM file, whose last row comes first, a few rows at a time."""
    height, width = shape
    start = file.tell()
    if file.seek(0, io.SEEK_END) < start + 4 * height * width:
        raise DataError("truncated PFM")
    num_rows, num_columns = max(1, _CHUNK_VALUES // width), min(width, _CHUNK_VALUES)
    for first in range(0, height, num_rows):
        last = min(first + num_rows, height)
        file.seek(start + 4 * width * (height - last))
        for column in range(0, width, num_columns):  # several only if a block is a single row
            num_values = (last - first) * min(num_columns, width - column)
            values = np.frombuffer(file.read(4 * num_values), f"{byte_order}f4")
            yield values.reshape(last - first, -1)[::-1].astype(np.float32).ravel()
