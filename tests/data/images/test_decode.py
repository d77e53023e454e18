"""Tests of decoding every format and mode to upright RGB, and of reasons for broken files."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from finetune.data.images.decode import check_image, decode_image
from finetune.errors import DataError
from finetune.types import ReadOptions
from tests.support.helpers import create_noise

RED, HALF_RED = (255, 0, 0), (255, 127, 127)
CLEAR, HALF, FULL = (255, 0, 0, 0), (255, 0, 0, 128), (255, 0, 0, 255)


def encoded(image: Image.Image, file_format: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its data do not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def decoded(path: Path) -> np.ndarray:
    assert check_image(path) is None
    image = decode_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = np.asarray(create_noise(width=6, height=4))
    # the transform that a camera applied by the Exif standard; the reader inverts it
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(decoded(tmp_path / "x.png"), upright)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_decode_gray_gives_three_equal_channels(tmp_path: Path, mode: str) -> None:
    gray = create_noise().convert(mode)
    gray.save(tmp_path / "x.png")
    expected = np.asarray(gray.convert("L"))
    np.testing.assert_array_equal(decoded(tmp_path / "x.png"), np.stack([expected] * 3, -1))


def test_decode_transparency_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate((CLEAR, HALF, FULL)):
        image.putpixel((x, 0), pixel)
    image.save(tmp_path / "rgba.png")
    gray = Image.merge("LA", (Image.new("L", (3, 1), 100), image.getchannel("A")))
    gray.save(tmp_path / "la.png")
    np.testing.assert_allclose(
        decoded(tmp_path / "rgba.png")[0], [(255,) * 3, HALF_RED, RED], atol=1
    )
    by_hand = [round(255 - (255 - 100) * alpha / 255) for alpha in (0, 128, 255)]
    np.testing.assert_allclose(decoded(tmp_path / "la.png")[0, :, 0], by_hand, atol=1)


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_decode_palette_transparency_is_composited_on_white(
    tmp_path: Path, transparency: int | bytes
) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, *RED])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "x.png", transparency=transparency)
    assert decoded(tmp_path / "x.png").tolist() == [[[255, 255, 255], list(RED)]]


def test_decode_cmyk_gives_rgb(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    cyan.save(tmp_path / "x.jpg", quality=100)
    cyan.save(tmp_path / "x.tif")
    for name in ("x.jpg", "x.tif"):
        np.testing.assert_allclose(decoded(tmp_path / name)[0, 0], (0, 255, 255), atol=2)


def test_decode_16_bit_keeps_upper_8_bits(tmp_path: Path) -> None:
    gray = np.linspace(0, 65535, 60).astype(np.uint16).reshape(6, 10)
    color = np.stack([gray, gray[::-1], gray[:, ::-1]], -1)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray).save(tmp_path / "gray.tif")
    assert cv2.imwrite(str(tmp_path / "color.png"), color[..., ::-1])
    for name in ("gray.png", "gray.tif"):
        np.testing.assert_array_equal(decoded(tmp_path / name)[..., 1], gray // 256)
    np.testing.assert_array_equal(decoded(tmp_path / "color.png"), color // 256)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_decode_animation_gives_first_frame(tmp_path: Path, file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, (0, 0, 255))]
    file = tmp_path / f"x.{file_format.lower()}"
    frames[0].save(file, file_format, save_all=True, append_images=frames[1:])
    with Image.open(file) as image:
        assert getattr(image, "n_frames", 1) == 2
    np.testing.assert_allclose(decoded(file), np.asarray(frames[0]), atol=3)


@pytest.mark.parametrize("file_format", ["BMP", "PPM", "JPEG2000", "AVIF"])
def test_decode_other_formats(tmp_path: Path, file_format: str) -> None:
    image = Image.new("RGB", (32, 24), (200, 100, 50))
    (tmp_path / "x").write_bytes(encoded(image, file_format))
    np.testing.assert_allclose(decoded(tmp_path / "x"), np.asarray(image), atol=4)


JPEG = encoded(create_noise(width=64, height=48), "JPEG")
PNG = encoded(create_noise(width=64, height=48), "PNG")
BROKEN = {
    "empty.jpg": (b"", "empty file"),
    "half.jpg": (JPEG[: len(JPEG) // 2], "truncated JPEG$"),
    "end.jpg": (JPEG[:-2], "truncated JPEG$"),
    "half.png": (PNG[: len(PNG) // 2], "truncated PNG$"),
    "text.jpg": (b"Dear diary,\n" * 20, "not an image: text"),
    "noise.jpg": (bytes(range(7, 256)), "not an image: unrecognised content"),
    "bits.png": (PNG[:2000] + bytes(40) + PNG[2040:], r"damaged PNG \(.+\)"),
    "large.png": (PNG, r"too large: 64x48 is 0 megapixels, over data\.max_megapixels=0\.003"),
    "bomb.png": (
        png_header(50_000, 50_000),
        r"too large: 50000x50000 is 2500 megapixels, over Pillow's limit of 178\.9$",
    ),
    "float.tif": (encoded(Image.new("F", (4, 4)), "TIFF"), "32-bit float"),
    "gone.png": (None, "does not exist"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_decode_and_check_broken_file_give_same_reason(tmp_path: Path, name: str) -> None:
    data, reason = BROKEN[name]
    if data is not None:
        (tmp_path / name).write_bytes(data)
    options = ReadOptions(max_pixels=3_000 if name == "large.png" else 1_000_000)
    with pytest.raises(DataError, match=f"^{reason}") as caught:
        decode_image(tmp_path / name, options=options)
    assert check_image(tmp_path / name, options=options) == str(caught.value)


def _build_webp(kind: bytes, header: bytes) -> bytes:
    """Return a WebP whose first chunk has a header, without pixels."""
    body = b"WEBP" + kind + struct.pack("<I", len(header)) + header
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _patch(data: bytes, position: int, values: bytes) -> bytes:
    return data[:position] + values + data[position + len(values) :]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.bmp", _patch(encoded(Image.new("RGB", (8, 8)), "BMP"), 18,
                         struct.pack("<ii", 16_000, 15_000))),
        ("a.gif", _patch(encoded(Image.new("P", (8, 8)), "GIF"), 6,
                         struct.pack("<HH", 16_000, 15_000))),
        ("a.png", png_header(16_000, 15_000)),
        ("a.ppm", b"P6 16000 15000 255\n"),
        # 240 megapixels, as their libraries write them
        ("lossy.webp", _build_webp(b"VP8 ", bytes.fromhex("10d400 9d012a 803e 983a") + bytes(30))),
        ("lossless.webp", _build_webp(b"VP8L", bytes.fromhex("2f 7ffea50e") + bytes(30))),
        ("extended.webp", _build_webp(b"VP8X", bytes.fromhex("00000000 7f3e00 973a00"))
         + b"VP8L" + struct.pack("<I", 35) + bytes.fromhex("2f 7ffea50e") + bytes(30)),
    ],
)  # fmt: skip
def test_bomb_has_its_width_and_height_whatever_its_format(
    tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    expected = "too large: 16000x15000 is 240 megapixels, over "
    assert (check_image(tmp_path / name) or "").startswith(expected)


def test_check_image_of_exactly_max_pixels_passes(tmp_path: Path) -> None:
    create_noise(width=64, height=48).save(tmp_path / "x.png")
    assert check_image(tmp_path / "x.png", options=ReadOptions(max_pixels=64 * 48)) is None
    assert check_image(tmp_path / "x.png", options=ReadOptions(max_pixels=64 * 48 - 1)) is not None
