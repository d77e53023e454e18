"""Malformed image files, made from real ones by mutations that are drawn from a seed."""

import gzip
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

_FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "jpg": ("JPEG", {"quality": 85}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "cmyk.jpg": ("JPEG", {}),
    "grey.jpeg": ("JPEG", {}),
    "png": ("PNG", {}),
    "palette.png": ("PNG", {}),
    "16bit.png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 80}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "raw.tif": ("TIFF", {}),
    "lzw.tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate.tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "jpeg.tif": ("TIFF", {"compression": "jpeg"}),
    "avif": ("AVIF", {"quality": 60}),
    "jp2": ("JPEG2000", {}),
    "ppm": ("PPM", {}),
}
_MODES = {"cmyk.jpg": "CMYK", "grey.jpeg": "L", "palette.png": "P", "16bit.png": "I;16"}


def encode_seeds(photos: Sequence[Image.Image]) -> list[tuple[str, bytes]]:
    """Return suffix and content of each photo in each format."""
    seeds = []
    for photo in photos:
        for suffix, (name, options) in _FORMATS.items():
            mode = _MODES.get(suffix, "RGB")
            grey = photo.convert("L")
            image = grey.convert("I").convert("I;16") if mode == "I;16" else photo.convert(mode)
            stream = io.BytesIO()
            image.save(stream, name, **options)
            seeds.append((suffix, stream.getvalue()))
    return seeds


def truncate(data: bytes, draw: random.Random) -> bytes:
    """Return a beginning of the file."""
    return data[: draw.randrange(len(data))]


def truncate_header(data: bytes, draw: random.Random) -> bytes:
    """Return the first bytes of the file."""
    return data[: draw.randrange(64)]


def flip_bits(data: bytes, draw: random.Random) -> bytes:
    """Flip one to 64 bits anywhere."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 8, 64))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_header_bits(data: bytes, draw: random.Random) -> bytes:
    """Flip bits of the first 128 bytes, where sizes and types stand."""
    size = min(128, len(data))
    return flip_bits(data[:size], draw) + data[size:]


def set_extreme_numbers(data: bytes, draw: random.Random) -> bytes:
    """Replace two or four bytes of the header by an extreme number."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 4))):
        number = draw.choice(
            (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\1", b"\xff\xff")
        )
        start = draw.randrange(min(256, len(changed)))
        changed[start : start + len(number)] = number
    return bytes(changed)


def overwrite(data: bytes, draw: random.Random) -> bytes:
    """Replace a part by random bytes."""
    start = draw.randrange(len(data))
    length = draw.randrange(1, 1 + min(4096, len(data) - start))
    return data[:start] + draw.randbytes(length) + data[start + length :]


def remove_part(data: bytes, draw: random.Random) -> bytes:
    """Leave out a part in the middle."""
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.randrange(1, 1 + min(4096, len(data) - start)) :]


def repeat_part(data: bytes, draw: random.Random) -> bytes:
    """Insert a part a second time, or many times."""
    start = draw.randrange(len(data))
    part = data[start : start + draw.randrange(1, 512)]
    return data[:start] + part * draw.choice((2, 3, 100)) + data[start + len(part) :]


def zero_part(data: bytes, draw: random.Random) -> bytes:
    """Set all bytes from somewhere on to zero, as a crashed copy leaves them."""
    start = draw.randrange(len(data))
    return data[:start] + bytes(len(data) - start)


def append_bytes(data: bytes, draw: random.Random) -> bytes:
    """Append other bytes, which readers ignore or not."""
    return data + draw.choice((draw.randbytes(1000), data, b"<?php echo 1; ?>", bytes(100_000)))


def join_halves(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Return the beginning of one file with the end of another."""
    return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    truncate, truncate_header, flip_bits, flip_header_bits, set_extreme_numbers, overwrite,
    remove_part, repeat_part, zero_part, append_bytes,
)  # fmt: skip


def _build_png(width: int, height: int, body: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of 8-bit grey with any size in its header and any compressed data."""

    def pack(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pack(*part) for part in parts)


def _build_tiff(width: int, height: int) -> bytes:
    """Return a TIFF that claims a size and has few bytes of data."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, min(width * height, 2**32 - 1))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = bytes(64)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


class _Reduce:
    """Object whose pickle runs code when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a pickle was opened",))


def list_special_files() -> list[tuple[str, bytes]]:
    """Return suffix and content of bombs, and of files that are no images."""
    zeros = zlib.compress(bytes(50_000_000), 9)
    text_bomb = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    small = zlib.compress(bytes(5 * 4))
    archive, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("photo.jpg", b"no photo")
    with tarfile.open(fileobj=tar, mode="w") as packed_tar:
        packed_tar.addfile(tarfile.TarInfo("../photo.jpg"))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>'
    external = b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>'
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b","
    gif += struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02L\x01\0;"
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, 100_000, -100_000, 1, 24, 0, 0, 0, 0, 0, 0)
    jpeg = b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x11\0\x02\x11\0\x03\x11\0\xff\xd9"
    return [
        ("png", _build_png(100_000, 100_000, zeros)),
        ("png", _build_png(7_000, 7_000, zeros)),
        ("png", _build_png(2**31 - 1, 2**31 - 1, small)),
        ("png", _build_png(0, 0, small)),
        ("png", _build_png(4, 4, small, (b"zTXt", text_bomb))),
        ("png", _build_png(4, 4, small, (b"iCCP", text_bomb))),
        ("png", _build_png(4, 4, zeros)),
        ("tif", _build_tiff(100_000, 100_000)),
        ("tif", _build_tiff(2**32 - 1, 2**32 - 1)),
        ("tif", _build_tiff(0, 5)),
        ("gif", gif),
        ("bmp", bmp),
        ("jpg", jpeg),
        ("ppm", b"P6 1000000 1000000 255\n" + bytes(100)),
        ("ppm", b"P6 -5 5 255\n" + bytes(100)),
        ("webp", b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8X" + bytes(30)),
        ("jpg", b""),
        ("jpg", b"\0" * 10_000),
        ("jpg", b"\xff\xd8\xff"),
        ("png", b"\x89PNG\r\n\x1a\n"),
        ("jpg", svg),
        ("png", external),
        ("jpg", b"<!doctype html><title>404 Not Found</title>"),
        ("png", json.dumps({"error": "not found"}).encode()),
        ("jpg", pickle.dumps(_Reduce())),
        ("jpg", archive.getvalue()),
        ("jpg", tar.getvalue()),
        ("jpg", gzip.compress(bytes(1_000_000))),
        ("jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("jpg", b"%PDF-1.7\n%%EOF"),
        ("jpg", b"\x7fELF" + bytes(1000)),
    ]


def generate_files(
    photos: Sequence[Image.Image], count: int, seed: int
) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, kind and content of ``count`` files: all special ones, then mutations in turn.

    Every fiftieth file has the suffix of another format, and some are a mutation of a mutation.
    """
    draw = random.Random(seed)
    seeds = encode_seeds(photos)
    suffixes = [suffix for suffix, _ in seeds]
    special = list_special_files()
    for number in range(count):
        if number < len(special):
            suffix, data = special[number]
            yield f"{number:05d}.{suffix}", "special", data
            continue
        suffix, data = draw.choice(seeds)
        mutation = _MUTATIONS[number % len(_MUTATIONS)]
        kind = mutation.__name__
        if number % 37 == 0:
            data, kind = join_halves(data, draw.choice(seeds)[1], draw), "join_halves"
        else:
            data = mutation(data, draw)
        if number % 11 == 0 and data:
            data = draw.choice(_MUTATIONS)(data, draw)
        if number % 50 == 0:
            suffix = draw.choice(suffixes)
        yield f"{number:05d}.{suffix}", kind, data
