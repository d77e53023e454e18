"""JPEG 2000 files of more than 8 bits follow the range of the dataset, or are rejected."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.decode import check_image, open_image
from finetune.types import PixelRange, ReadOptions

VALUES = np.linspace(0, 4095, 48 * 64).reshape(48, 64).astype(np.uint16)
TWELVE_BITS, WINDOW = PixelRange(0, 4095), PixelRange(1000, 3000)


def encode(path: Path, values: NDArray[Any], **arguments: Any) -> Path:
    imagecodecs = pytest.importorskip("imagecodecs")
    path.write_bytes(imagecodecs.jpeg2k_encode(values, level=0, **arguments))
    return path


def read_grey(path: Path, pixel_range: PixelRange | None) -> NDArray[np.uint8]:
    image = open_image(path, options=ReadOptions(pixel_range=pixel_range))
    return np.asarray(image.to_pil())[..., 0]


@pytest.mark.parametrize("suffix", ["jp2", "j2k"])
def test_open_image_jpeg2000_of_16_bits_has_the_range_of_the_dataset(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(VALUES).save(path)
    assert open_image(path).max_value == 4095
    assert np.array_equal(read_grey(path, None), VALUES >> 8)
    assert np.array_equal(read_grey(path, TWELVE_BITS), VALUES >> 4)
    expected = np.clip((VALUES.astype(float) - 1000) * 256 // 2001, 0, 255)
    assert np.array_equal(read_grey(path, WINDOW), expected)


@pytest.mark.parametrize("pixel_range", [None, TWELVE_BITS, PixelRange(0, 1023)])
def test_open_image_jpeg2000_of_12_bits_states_them(
    tmp_path: Path, pixel_range: PixelRange | None
) -> None:
    path = encode(tmp_path / "a.jp2", VALUES, bitspersample=12)
    assert np.array_equal(read_grey(path, pixel_range), VALUES >> 4)
    assert open_image(path).max_value == 0
    assert read_grey(path, WINDOW).min() == 0


@pytest.mark.parametrize("num_bits", [12, 16])
def test_check_image_jpeg2000_in_colour_of_more_than_8_bits_is_rejected(
    tmp_path: Path, num_bits: int
) -> None:
    path = encode(tmp_path / "a.jp2", np.dstack([VALUES] * 3), bitspersample=num_bits)
    assert check_image(path) == (
        f"JPEG 2000 of {num_bits}-bit samples in mode RGB: more than 8 bits are read in grey "
        f"only, up to 16; convert it to PNG or TIFF"
    )


def test_check_image_jpeg2000_of_signed_samples_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.jp2"
    Image.fromarray(VALUES).save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\x4f\xff\x51") + 42] |= 0x80
    path.write_bytes(data)
    assert check_image(path) == (
        "JPEG 2000 of signed samples, which are not supported; store it as TIFF"
    )
