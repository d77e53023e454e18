"""Frame header of a JPEG file, which says whether and by what it can be decoded."""

import io
import re
from dataclasses import dataclass

from PIL import Image

from finetune.errors import DataError

_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_UNSUPPORTED_FRAMES = {
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xCB: "lossless arithmetic-coded",
    0xCD: "hierarchical",
    0xCE: "hierarchical",
    0xCF: "hierarchical",
}
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_SEGMENT = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]", re.DOTALL)
"""Marker of a segment or of the end: no stuffed zero, fill byte or other lone marker."""
_END = 0xD9
_START_OF_SCAN = 0xDA


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Facts of a JPEG before its first scan.

    Attributes:
        frame: Marker of the frame header (SOF), 0xC0 to 0xCF.
        num_bits: Bits of a sample.
        height: Height in pixels.
        width: Width in pixels.
        sampling: Horizontal and vertical sampling factor of each component.
        scan_offset: Offset of the first scan.
        num_scan_components: Components in the first scan.
    """

    frame: int
    num_bits: int
    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]
    scan_offset: int
    num_scan_components: int

    @property
    def is_lossless(self) -> bool:
        """Whether pixels are predicted and not transformed, so that no scaled decoding exists."""
        return self.frame in _LOSSLESS

    @property
    def coefficient_bytes(self) -> int:
        """Memory for the coefficients that a decoder keeps until the last scan; 0 for one scan."""
        is_one_scan = self.num_scan_components == len(self.sampling)
        if (self.frame not in _PROGRESSIVE and is_one_scan) or not self.sampling:
            return 0
        largest = [max(factors) for factors in zip(*self.sampling, strict=True)]
        fraction = sum(h * v for h, v in self.sampling) / (largest[0] * largest[1] or 1)
        return round(2 * fraction * self.height * self.width)

    def describe_obstacle(self) -> str:
        """Return why no decoder here reads the file; empty if one does."""
        kind = _UNSUPPORTED_FRAMES.get(self.frame)
        if kind is not None:
            return f"{kind} JPEG: convert it to a baseline JPEG or to PNG"
        if self.num_bits != 8:
            lossless = " lossless" if self.is_lossless else ""
            return f"{self.num_bits}-bit{lossless} JPEG: only 8 bits are read; convert it to PNG"
        if len(self.sampling) not in (1, 3, 4):
            return f"JPEG of {len(self.sampling)} bands: 1, 3 or 4 are read; convert it"
        return ""


def parse_jpeg_header(data: bytes) -> JpegHeader | None:
    """Return the header of a JPEG; None if it is damaged before the first scan.

    Garbage between segments is passed over, as by decoders.

    Raises:
        DataError: The file has no scan.
    """
    frame: tuple[int, bytes] | None = None
    offset, is_closed = 2, False
    while found := _SEGMENT.search(data, offset):
        offset = found.end()
        marker = data[offset - 1]
        if marker == _END:
            is_closed = True
            continue
        length = int.from_bytes(data[offset : offset + 2], "big")
        body = data[offset + 2 : offset + length]
        if marker in _FRAMES and frame is None:
            frame = marker, body
        if marker == _START_OF_SCAN and body:
            return None if frame is None else _parse(*frame, found.start(), body[0])
        offset += max(2, length)
    if is_closed or offset + 1 < len(data):
        raise DataError("damaged JPEG (no image data)")
    raise DataError("truncated JPEG")


def read_jpeg_orientation(data: bytes, header_end: int) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none that Pillow can read.

    Args:
        data: Content of the file.
        header_end: Offset of the first scan.
    """
    has_exif = data.find(b"Exif\0\0", 0, header_end) >= 0
    if not has_exif and data.find(b"tiff:Orientation", 0, header_end) < 0:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return read_orientation(image)
    except Exception:  # damaged EXIF data raise various exceptions, and turn nothing
        return 1


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none that can be read.

    Pillow's ``exif_transpose`` raises if it cannot write the other tags again.
    """
    try:
        return to_orientation(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data raise various exceptions
        return 1


def to_orientation(value: object) -> int:
    """Return a stored orientation where it is one, 1 to 8; otherwise 1, which turns nothing."""
    return next((number for number in range(1, 9) if number == value), 1)


def _parse(
    frame: int, body: bytes, scan_offset: int, num_scan_components: int
) -> JpegHeader | None:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        return None
    factors = [body[7 + 3 * component] for component in range(body[5])]
    return JpegHeader(
        frame=frame,
        num_bits=body[0],
        height=int.from_bytes(body[1:3], "big"),
        width=int.from_bytes(body[3:5], "big"),
        sampling=tuple((factor >> 4, factor & 15) for factor in factors),
        scan_offset=scan_offset,
        num_scan_components=num_scan_components,
    )
