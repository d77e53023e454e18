"""The transparent colour of a PNG of up to 8 bits."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from finetune.data.images.decode import open_image
from tests.data.images.codecs.test_png16 import chunk

GREY, COLOR = 0, 2


@pytest.mark.parametrize(
    ("num_bits", "color_type", "key", "row", "expected"),
    [
        (1, GREY, 0, b"\x40", [255, 255, 255]),
        (4, GREY, 0xFFFF, b"\x3f\x20", [51, 255, 34]),
        (4, GREY, 0xABC3, b"\x3f\x20", [255, 255, 34]),
        (8, GREY, 0xFF03, bytes([3, 200, 9]), [255, 200, 9]),
        (8, COLOR, 0x0107, bytes([3] * 3 + [7] * 3 + [9] * 3), [3, 255, 9]),
    ],
)
def test_open_image_png_only_the_bits_of_a_pixel_count_in_its_transparent_colour(
    tmp_path: Path, num_bits: int, color_type: int, key: int, row: bytes, expected: list[int]
) -> None:
    header = struct.pack(">IIBBBBB", 3, 1, num_bits, color_type, 0, 0, 0)
    stored_key = struct.pack(">H", key) * (3 if color_type == COLOR else 1)
    chunks = [(b"IHDR", header), (b"tRNS", stored_key), (b"IDAT", zlib.compress(b"\0" + row))]
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*chunks, (b"IEND", b"")])
    )
    assert np.asarray(open_image(path).to_pil())[0, :, 0].tolist() == expected
