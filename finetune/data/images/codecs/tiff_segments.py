"""Decoding of the strips and tiles of a TIFF file to samples, without imagecodecs.

Deflate and LZMA are decompressed by the standard library, LZW, PackBits and Zstandard by the
libtiff in Pillow: a strip is wrapped into a TIFF of 8-bit grey, because these compress bytes,
whatever these mean. Predictors, bit packing and byte order are undone here.
"""

import io
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.resample import Pixels
from finetune.errors import DataError
from finetune.units import format_bytes

NONE, DEFLATE_CODES, LZMA = 1, (8, 32946), 34925
JPEG = 7
_LIBTIFF_CODES = {5: "LZW", 32773: "PackBits", 50000: "Zstandard"}
DECODED_COMPRESSIONS = frozenset({NONE, *DEFLATE_CODES, LZMA, *_LIBTIFF_CODES})
"""TIFF's numbers of the compressions that are decoded here."""

_CHUNK_BYTES = 2**24
"""Size up to which rows of a strip are decoded at once."""
_MAX_SEGMENT_BYTES = 2**28
"""Largest strip or tile that can only be decoded in one piece."""


@dataclass(frozen=True, slots=True)
class SegmentFormat:
    """Storage of the samples of a strip or tile.

    Attributes:
        compression: TIFF's number.
        predictor: 1 for none, 2 for differences of neighbours, 3 for those of float bytes.
        byte_order: "<" or ">".
        dtype: Type of the samples in memory, in native byte order.
        num_bits: Bits of a stored sample.
        num_columns: Columns of a strip or tile, with padding.
        num_samples: Samples of a pixel in this segment: 1 for a plane.
        is_bit_reversed: Whether the bits of a byte are stored from the lowest on.
    """

    compression: int
    predictor: int
    byte_order: Literal["<", ">"]
    dtype: np.dtype[Any]
    num_bits: int
    num_columns: int
    num_samples: int
    is_bit_reversed: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, which begins at a whole byte."""
        return (self.num_columns * self.num_samples * self.num_bits + 7) // 8


def iter_row_chunks(
    file: BinaryIO,
    offset: int,
    num_bytes: int,
    num_rows: int,
    segment: SegmentFormat,
    *,
    jpeg_tables: bytes | None = None,
) -> Iterator[NDArray[Any]]:
    """Yield the rows of a strip or tile, a few at a time, each of shape (rows, columns, samples).

    Args:
        file: TIFF file.
        offset: Position of the compressed data.
        num_bytes: Size of the compressed data.
        num_rows: Rows of the strip or tile.
        segment: How it is stored.
        jpeg_tables: Tables that all JPEG streams of the file share; None where each has its own.

    Raises:
        DataError: The data end early, or are too large to be decoded in one piece.
        OSError: They are damaged. As do the errors of zlib and lzma.
    """
    rows_per_chunk = max(1, _CHUNK_BYTES // max(1, segment.row_bytes))
    if num_bytes == 0 and offset == 0:  # sparse files leave out segments of zeros
        yield np.zeros((num_rows, segment.num_columns, segment.num_samples), segment.dtype)
        return
    if num_bytes == 0:  # some writers do not fill in the size
        if segment.compression != NONE:
            raise DataError("damaged TIFF (a strip or tile of 0 bytes)")
        num_bytes = num_rows * segment.row_bytes
    if segment.compression == JPEG:
        file.seek(offset)
        yield _decode_jpeg(file.read(num_bytes), jpeg_tables)[..., None]
        return
    for chunk in _decompress(file, offset, num_bytes, num_rows, rows_per_chunk, segment):
        rows = chunk.reshape(-1, segment.row_bytes)
        yield _to_samples(rows, segment)


def _decompress(
    file: BinaryIO,
    offset: int,
    num_bytes: int,
    num_rows: int,
    rows_per_chunk: int,
    segment: SegmentFormat,
) -> Iterator[Pixels]:
    """Yield the bytes of whole rows, a chunk of rows at a time."""
    total = num_rows * segment.row_bytes
    file.seek(offset)
    if segment.compression in _LIBTIFF_CODES:
        if total > _MAX_SEGMENT_BYTES:
            raise DataError(
                f"TIFF with a strip or tile of {format_bytes(total)}, compressed by "
                f"{_LIBTIFF_CODES[segment.compression]}; store it in strips of less than "
                f"{format_bytes(_MAX_SEGMENT_BYTES)}, or with Deflate"
            )
        data = _reverse_bits(file.read(num_bytes), segment)
        yield _decompress_by_libtiff(data, num_rows, segment)
        return
    source = _ByteSource(file, num_bytes, segment)
    for first in range(0, num_rows, rows_per_chunk):
        wanted = min(rows_per_chunk, num_rows - first) * segment.row_bytes
        chunk = source.read(wanted)
        if len(chunk) < wanted:
            raise DataError("truncated TIFF")
        yield np.frombuffer(chunk, np.uint8)


class _ByteSource:
    """Decompressed bytes of a segment, read in pieces."""

    def __init__(self, file: BinaryIO, num_bytes: int, segment: SegmentFormat) -> None:
        self._file = file
        self._remaining = num_bytes
        self._segment = segment
        self._pending = b""
        self._decompressor: Any = None
        if segment.compression in DEFLATE_CODES:
            self._decompressor = zlib.decompressobj()
        elif segment.compression == LZMA:
            self._decompressor = lzma.LZMADecompressor()

    def read(self, wanted: int) -> bytes:
        """Return the next bytes; fewer than ``wanted`` where the data end."""
        if self._decompressor is None:
            return self._read_stored(wanted)
        pieces: list[bytes] = []
        missing = wanted
        while missing > 0 and not self._decompressor.eof:
            piece = self._decompress(missing)
            if not piece and not self._remaining and not self._pending:
                break
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def _decompress(self, limit: int) -> bytes:
        if isinstance(self._decompressor, lzma.LZMADecompressor):
            data = self._read_stored(2**20) if self._decompressor.needs_input else b""
            return bytes(self._decompressor.decompress(data, limit))
        data = self._pending or self._read_stored(2**20)
        piece = bytes(self._decompressor.decompress(data, limit))
        self._pending = self._decompressor.unconsumed_tail
        return piece

    def _read_stored(self, wanted: int) -> bytes:
        data = self._file.read(min(wanted, self._remaining))
        self._remaining = self._remaining - len(data) if data else 0
        return _reverse_bits(data, self._segment)


def _reverse_bits(data: bytes, segment: SegmentFormat) -> bytes:
    if not segment.is_bit_reversed:
        return data
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return np.packbits(bits, bitorder="big").tobytes()


def _decompress_by_libtiff(data: bytes, num_rows: int, segment: SegmentFormat) -> Pixels:
    """Return the bytes of a segment that libtiff decompresses, shape (rows * row_bytes,)."""
    columns = segment.row_bytes
    tags = [
        (256, columns), (257, num_rows), (258, 8), (259, segment.compression), (262, 1),
        (273, 8), (277, 1), (278, num_rows), (279, len(data)),
    ]  # fmt: skip
    position = 8 + len(data) + len(data) % 2
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHI", b"II", 42, position)
    wrapped = b"".join((header, data, bytes(len(data) % 2), directory, bytes(4)))
    with Image.open(io.BytesIO(wrapped), formats=("TIFF",)) as image:
        return np.asarray(image, np.uint8).ravel()


def _decode_jpeg(data: bytes, tables: bytes | None) -> Pixels:
    """Return a plane of 8-bit samples, shape (rows, columns)."""
    # both are whole streams; without the end of the one and the start of the other they are one
    stream = data if tables is None else tables[:-2] + data[2:]
    with Image.open(io.BytesIO(stream), formats=("JPEG",)) as image:
        if image.mode != "L":
            raise DataError(f"TIFF with a JPEG of mode {image.mode} in a plane")
        return np.asarray(image, np.uint8)


def _to_samples(rows: Pixels, segment: SegmentFormat) -> NDArray[Any]:
    """Return the samples of rows of bytes, native byte order, shape (rows, columns, samples)."""
    shape = (len(rows), segment.num_columns, segment.num_samples)
    dtype, num_bits = segment.dtype, segment.num_bits
    if segment.predictor == 3:
        return _undo_float_predictor(rows, segment).reshape(shape)
    if num_bits != 8 * dtype.itemsize:
        return _unpack_bits(rows, segment).reshape(shape)
    stored = np.ascontiguousarray(rows).view(dtype.newbyteorder(segment.byte_order))
    samples = stored.astype(dtype, copy=False).reshape(shape)
    if segment.predictor == 2:
        # the sums wrap around at the number of bits
        unsigned = samples.view(f"u{dtype.itemsize}")
        return np.cumsum(unsigned, axis=1, dtype=unsigned.dtype).view(dtype)
    return samples


def _unpack_bits(rows: Pixels, segment: SegmentFormat) -> NDArray[Any]:
    """Return samples of packed bits, the highest first, shape (rows, columns * samples)."""
    num_values = segment.num_columns * segment.num_samples
    bits = np.unpackbits(rows, axis=1, count=num_values * segment.num_bits)
    bits = bits.reshape(len(rows), num_values, segment.num_bits)
    values = np.zeros(bits.shape[:2], segment.dtype)
    for index in range(segment.num_bits):
        values = (values << 1) | bits[..., index]
    return values


def _undo_float_predictor(rows: Pixels, segment: SegmentFormat) -> NDArray[Any]:
    """Return the floats of rows of byte differences (Adobe, TIFF technical note 3)."""
    size = segment.dtype.itemsize
    stride = segment.num_samples
    differences = rows.reshape(len(rows), -1, stride)
    planes = np.cumsum(differences, axis=1, dtype=np.uint8).reshape(len(rows), size, -1)
    # the most significant bytes come first, in either byte order
    values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(segment.dtype.newbyteorder(">"))
    return values.astype(segment.dtype)
