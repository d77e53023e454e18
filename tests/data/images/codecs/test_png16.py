"""PNG files of 16 bits are read from all their bits, with transparency on white."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.decode import check_image, open_image
from finetune.types import PixelRange, ReadOptions

HEIGHT, WIDTH = 23, 31
TWELVE_BITS = PixelRange(0, 4095)
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's number by the samples of a pixel."""


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_png(path: Path, samples: NDArray[Any], *chunks: bytes) -> Path:
    """Write samples of shape (H, W, 1 to 4), with every second row filtered by differences."""
    rows = samples.astype(">u2").reshape(len(samples), -1).view(np.uint8)
    raw = b""
    for number, row in enumerate(rows):
        pixel_bytes = 2 * samples.shape[2]
        left = np.concatenate([np.zeros(pixel_bytes, np.uint8), row[:-pixel_bytes]])
        raw += b"\1" + (row - left).tobytes() if number % 2 else b"\0" + row.tobytes()
    header = struct.pack(
        ">IIBBBBB", samples.shape[1], len(samples), 16, COLOR_TYPES[samples.shape[2]], 0, 0, 0
    )
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(raw))]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))
    return path


def draw_samples(num_samples: int, largest: int) -> NDArray[np.uint16]:
    rng = np.random.default_rng(num_samples)
    return rng.integers(0, largest + 1, (HEIGHT, WIDTH, num_samples)).astype(np.uint16)


def read_pixels(path: Path, pixel_range: PixelRange | None = None) -> NDArray[np.uint8]:
    image = open_image(path, options=ReadOptions(pixel_range=pixel_range))
    return np.asarray(image.to_pil())


@pytest.mark.parametrize("num_samples", COLOR_TYPES)
@pytest.mark.parametrize("pixel_range", [None, TWELVE_BITS, PixelRange(1000, 3000)])
@pytest.mark.parametrize("largest", [65_535, 4095, 200])
def test_open_image_png16_scales_colours_and_composites_alpha(
    tmp_path: Path, num_samples: int, pixel_range: PixelRange | None, largest: int
) -> None:
    samples = draw_samples(num_samples, largest)
    alpha = np.full((HEIGHT, WIDTH, 1), 65_535)
    colors = samples
    if num_samples in (2, 4):
        samples[..., -1] = draw_samples(1, 65_535)[..., 0]
        colors, alpha = samples[..., :-1], samples[..., -1:].astype(int)
    path = write_png(tmp_path / "a.png", samples)
    low, high = (0, 65_535) if pixel_range is None else (pixel_range.low, pixel_range.high)
    scaled = np.clip(np.floor((colors.astype(int) - low) * (256 / (high - low + 1))), 0, 255)
    opacity = (alpha >> 8) / 255
    expected = scaled * opacity + 255 * (1 - opacity)
    assert np.abs(read_pixels(path, pixel_range) - expected).max() <= 0.51
    image = open_image(path, options=ReadOptions(pixel_range=pixel_range))
    if pixel_range is not None or largest < 2**14 or num_samples < 3:
        assert image.max_value == colors.max()
    else:
        assert image.max_value >> 8 == colors.max() >> 8


@pytest.mark.parametrize("num_samples", [1, 3])
def test_open_image_png16_transparent_colour_is_compared_with_all_bits(
    tmp_path: Path, num_samples: int
) -> None:
    samples = np.full((HEIGHT, WIDTH, num_samples), 0x1234)
    samples[5] = 0x1235  # another colour with the same upper bytes
    key = chunk(b"tRNS", struct.pack(f">{num_samples}H", *[0x1234] * num_samples))
    pixels = read_pixels(write_png(tmp_path / "a.png", samples, key))
    assert (pixels[:5] == 255).all()
    assert (pixels[5] == 0x12).all()


def stretch(values: NDArray[Any], way: str) -> NDArray[Any]:
    """Return 12-bit values as writers store them in 16 bits."""
    ways: dict[str, NDArray[Any]] = {
        "unchanged": values,
        "shifted": values << 4,
        "repeated": values << 4 | values >> 8,
        "multiplied": np.rint(values * (65_535 / 4095)),
    }
    return ways[way]


@pytest.mark.parametrize("way", ["unchanged", "shifted", "repeated", "multiplied"])
@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("pixel_range", [None, PixelRange(0, 65_535), PixelRange(0, 16_383)])
def test_open_image_png16_significant_bits_are_stated_however_they_are_stored(
    tmp_path: Path, way: str, num_samples: int, pixel_range: PixelRange | None
) -> None:
    values = draw_samples(num_samples, 4095).astype(int)
    stated = chunk(b"sBIT", bytes([12] * num_samples))
    path = write_png(tmp_path / "a.png", stretch(values, way), stated)
    assert np.array_equal(read_pixels(path, pixel_range)[..., :num_samples], values >> 4)
    assert open_image(path).max_value == 0


def test_open_image_png16_wrong_significant_bits_are_ignored(tmp_path: Path) -> None:
    values = draw_samples(1, 65_535)
    path = write_png(tmp_path / "a.png", values, chunk(b"sBIT", b"\x0c"))
    assert np.array_equal(read_pixels(path)[..., :1], values >> 8)
    assert open_image(path).max_value == values.max()


def test_open_image_png16_does_not_depend_on_its_own_maximum(tmp_path: Path) -> None:
    values = np.arange(WIDTH, dtype=np.uint16)[None].repeat(HEIGHT, 0) * 8
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png").max() == 0
    assert np.array_equal(read_pixels(tmp_path / "a.png", PixelRange(0, 255))[..., 0], values)


@pytest.mark.parametrize("orientation", [3, 6])
def test_open_image_png16_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    values = draw_samples(1, 65_535)[..., 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    Image.fromarray((values >> 8).astype(np.uint8)).save(tmp_path / "b.png", exif=exif)
    assert np.array_equal(read_pixels(tmp_path / "a.png"), read_pixels(tmp_path / "b.png"))


@pytest.mark.parametrize("num_samples", COLOR_TYPES)
def test_check_image_png16_cut_file_is_rejected(tmp_path: Path, num_samples: int) -> None:
    path = write_png(tmp_path / "a.png", draw_samples(num_samples, 65_535))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reason = check_image(path)
    assert reason is not None
    assert "truncated" in reason
