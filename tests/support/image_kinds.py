"""Image files of kinds that libraries read differently, with what is right for each."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.resample import Pixels

HEIGHT, WIDTH = 48, 64
X, Y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
GREY: Pixels = (X * 4).astype(np.uint8)
RGB: Pixels = np.dstack([X * 4, Y * 5, 255 - X]).astype(np.uint8)
BLOCK = slice(20, 30), slice(25, 40)
"""Rows and columns that are transparent."""


@dataclass(frozen=True)
class ImageKind:
    """File with what is right.

    Attributes:
        data: Content of the file.
        pixels: RGB that every command sees, shape (H, W, 3); None if the file is refused.
        reason: Regular expression of the reason of a refused file.
    """

    data: bytes
    pixels: Pixels | None = None
    reason: str = ""


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return an image in a format that Pillow writes."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def encode_png(
    samples: NDArray[Any], *, num_bits: int, transparent: tuple[int, ...], color_type: int = 0
) -> bytes:
    """Return a PNG of any depth with a transparent value or colour; Pillow writes 8 bits only.

    Args:
        samples: Values, shape (H, W) or (H, W, 3).
        num_bits: Bits of a sample, 1 to 16.
        transparent: Transparent value, or values of a colour.
        color_type: 0 for grey, 2 for RGB.
    """
    flat = samples.reshape(len(samples), -1)
    if num_bits >= 8:
        rows = [row.astype(f">u{num_bits // 8}").tobytes() for row in flat]
    else:
        bits = (flat[..., None] >> np.arange(num_bits - 1, -1, -1)) & 1
        rows = [np.packbits(row.ravel()).tobytes() for row in bits.astype(np.uint8)]
    header = struct.pack(
        ">IIBBBBB", samples.shape[1], samples.shape[0], num_bits, color_type, 0, 0, 0
    )
    chunks = (
        (b"IHDR", header),
        (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def encode_tiff(samples: NDArray[Any], **options: Any) -> bytes:
    """Return a TIFF in a layout that tifffile writes."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, samples, **options)
    return stream.getvalue()


def crop_avif(data: bytes, area: tuple[int, int, int, int]) -> bytes:
    """Return an AVIF of one item with a clean aperture of left, top, right and bottom."""
    left, top, right, bottom = area
    values = (right - left, 1, bottom - top, 1, left + right - WIDTH, 2, top + bottom - HEIGHT, 2)
    clap = struct.pack(">I4sIIIIiIiI", 40, b"clap", *values)
    properties = data.index(b"ipco") - 4
    end = properties + int.from_bytes(data[properties : properties + 4], "big")
    num_properties, at = 0, properties + 8
    while at < end:
        num_properties, at = num_properties + 1, at + int.from_bytes(data[at : at + 4], "big")
    associations = end + 8  # version and flags, number of items, item, its properties
    count = data[associations + 10]
    listed = data[associations + 11 : associations + 11 + count]
    parts = [
        data[:end],
        clap,
        data[end : associations + 10],
        bytes([count + 1]) + listed + bytes([0x80 | (num_properties + 1)]),
        data[associations + 11 + count :],
    ]
    result = bytearray(b"".join(parts))
    for kind, growth in ((b"meta", 41), (b"iprp", 41), (b"ipco", 40), (b"ipma", 1)):
        at = result.index(kind) - 4
        size = int.from_bytes(result[at : at + 4], "big") + growth
        result[at : at + 4] = size.to_bytes(4, "big")
    body = result.index(b"iloc") + 4
    extent = body + 16 if result[body] < 2 else body + 18  # after the item and its one extent
    assert result[body] == 0, "the layout that Pillow writes"
    start = int.from_bytes(result[extent - 2 : extent + 2], "big") + 41
    result[extent - 2 : extent + 2] = start.to_bytes(4, "big")
    return bytes(result)


def _grey(values: NDArray[Any]) -> Pixels:
    return np.dstack([values.astype(np.uint8)] * 3)


def _on_white(pixels: Pixels) -> Pixels:
    white = pixels.copy()
    white[BLOCK] = 255
    return white


def _list_transparent_kinds() -> dict[str, ImageKind]:
    kinds = {}
    for num_bits in (1, 2, 4, 8, 16):
        values = (X * (2**num_bits - 1) // WIDTH).astype(np.uint16)
        values[values == 1] = 0
        values[BLOCK] = 1
        shown = values >> 8 if num_bits == 16 else values * 255 // (2**num_bits - 1)
        data = encode_png(values, num_bits=num_bits, transparent=(1,))
        kinds[f"grey{num_bits}_value.png"] = ImageKind(data, _on_white(_grey(shown)))
    for num_bits in (8, 16):
        colors = RGB.astype(np.uint16) * (257 if num_bits == 16 else 1)
        colors[BLOCK] = 3, 2, 1
        data = encode_png(colors, num_bits=num_bits, transparent=(3, 2, 1), color_type=2)
        kinds[f"rgb{num_bits}_colour.png"] = ImageKind(data, _on_white(RGB))
    near = RGB.astype(np.uint16) * 257
    near[BLOCK] = 258, 257, 256  # shares its upper bytes with the transparent colour
    data = encode_png(near, num_bits=16, transparent=(258, 257, 257), color_type=2)
    expected = RGB.copy()
    expected[BLOCK] = 1
    kinds["rgb16_near_colour.png"] = ImageKind(data, expected)
    half = np.full_like(GREY, 128)
    for name, samples, extra, visible in (
        ("La.tif", np.dstack([GREY // 2, half]), "assocalpha", _grey(GREY // 2 + 127)),
        ("RGBa.tif", np.dstack([RGB // 2, half]), "assocalpha", RGB // 2 + 127),
    ):
        photometric = "rgb" if samples.shape[2] == 4 else "minisblack"
        data = encode_tiff(
            samples, photometric=photometric, planarconfig="contig", extrasamples=[extra]
        )
        kinds[name] = ImageKind(data, visible.astype(np.uint8))
    return kinds


def _list_shown_areas() -> dict[str, ImageKind]:
    frame = Image.fromarray(RGB).quantize(64)
    shown = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    shown[8:40, 16:56] = np.asarray(frame.convert("RGB"))[8:40, 16:56]
    small = encode(frame.crop((16, 8, 56, 40)), "GIF")
    gif = bytearray(small)
    gif[6:10] = struct.pack("<HH", WIDTH, HEIGHT)
    at = gif.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 40, 32))
    gif[at + 1 : at + 5] = struct.pack("<HH", 16, 8)
    avif = encode(Image.fromarray(RGB), "AVIF", quality=100, subsampling="4:4:4")
    with Image.open(io.BytesIO(avif)) as image:
        decoded = np.asarray(image.convert("RGB"))
    return {
        "small_frame.gif": ImageKind(bytes(gif), shown),
        "aperture.avif": ImageKind(crop_avif(avif, (16, 8, 56, 40)), decoded[8:40, 16:56]),
        "no_aperture.avif": ImageKind(avif, decoded),
    }


def _list_jpegs() -> dict[str, ImageKind]:
    photo = Image.fromarray(RGB).resize((320, 240), Image.Resampling.BICUBIC)
    jpeg = encode(photo, "JPEG", quality=95)
    half = len(jpeg) // 2
    exact = imagecodecs.jpeg8_encode(RGB, lossless=True, colorspace="RGB", outcolorspace="RGB")
    return {
        "lossless_grey.jpg": ImageKind(
            bytes(imagecodecs.jpeg8_encode(GREY, lossless=True)), _grey(GREY)
        ),
        "lossless_colour.jpg": ImageKind(bytes(exact), RGB),
        "lower_half.jpg": ImageKind(jpeg[:half] + b"\xff\xd9", reason="^truncated JPEG$"),
        "twelve_bits.jpg": ImageKind(
            bytes(imagecodecs.jpeg8_encode(GREY.astype(np.uint16) * 16, bitspersample=12)),
            reason="^12-bit JPEG: ",
        ),
    }


def _list_refused() -> dict[str, ImageKind]:
    tiff = encode(Image.fromarray(RGB), "TIFF", compression="tiff_lzw")
    bands = np.zeros((20, 20, 13), np.uint16)
    heic = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(64)
    return {
        "cut.tif": ImageKind(tiff[: len(tiff) // 2], reason="^truncated TIFF"),
        "bands.tif": ImageKind(
            encode_tiff(bands, photometric="minisblack", planarconfig="contig"),
            reason="TIFF of 13 bands of 16 bits",
        ),
        "uint32.tif": ImageKind(
            encode_tiff(GREY.astype(np.uint32) << 24, photometric="minisblack"),
            reason="32-bit unsigned integer",
        ),
        "heic.jpg": ImageKind(heic, reason=r"^HEIC \(iPhone photo\): "),
        "photo.heic": ImageKind(heic, reason=r"^HEIC \(iPhone photo\): "),
        "postscript.jpg": ImageKind(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
            reason="^PostScript: ",
        ),
        "page.png": ImageKind(b"<!DOCTYPE html>\n<html>404</html>", reason=r"^web page \(HTML\): "),
        "pointer.png": ImageKind(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            reason="^Git LFS pointer: .*git lfs pull",
        ),
        "text.bmp": ImageKind(b"Dear diary,\n", reason="^not an image: text"),
        "zeros.gif": ImageKind(bytes(4000), reason="^not an image: .*zero"),
        "empty.webp": ImageKind(b"", reason="^empty file"),
    }


KINDS: dict[str, ImageKind] = {
    **_list_transparent_kinds(),
    **_list_shown_areas(),
    **_list_jpegs(),
    **_list_refused(),
}
"""Files by name; their suffixes do not always name their format."""

ENCODERS: dict[str, Callable[[Image.Image], bytes]] = {
    "bmp": lambda image: encode(image, "BMP"),
    "gif": lambda image: encode(image, "GIF"),
    "jpg": lambda image: encode(image, "JPEG", quality=90),
    "jp2": lambda image: encode(image, "JPEG2000"),
    "png": lambda image: encode(image, "PNG"),
    "ppm": lambda image: encode(image, "PPM"),
    "lzw.tif": lambda image: encode(image, "TIFF", compression="tiff_lzw"),
    "deflate.tif": lambda image: encode(image, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg.tif": lambda image: encode(image, "TIFF", compression="jpeg"),
    "raw.tif": lambda image: encode(image, "TIFF"),
    "webp": lambda image: encode(image, "WEBP", lossless=True),
    "avif": lambda image: encode(image, "AVIF"),
    "progressive.jpg": lambda image: encode(image, "JPEG", progressive=True),
    "cmyk.jpg": lambda image: encode(image.convert("CMYK"), "JPEG"),
}
"""Encoders by suffix, of which damaged variants are made."""
