"""TIFF files whose strips have a size of 0, and other damage of their tags."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from finetune.data.images.decode import check_image, open_image

VALUES = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 50


def write(path: Path, numbers: dict[str, int], **arguments: Any) -> Path:
    """Write a TIFF of two strips whose named tags have these numbers in place of their own."""
    tifffile.imwrite(
        path, VALUES, photometric="minisblack", metadata=None, rowsperstrip=20, **arguments
    )
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for name, number in numbers.items():
            tag = file.pages.first.tags[name]
            code = {3: "H", 4: "I"}[int(tag.dtype)]
            struct.pack_into(f"<{tag.count}{code}", data, tag.valueoffset, *[number] * tag.count)
    path.write_bytes(data)
    return path


def test_open_image_tiff_missing_sizes_of_stored_strips_are_computed(tmp_path: Path) -> None:
    image = open_image(write(tmp_path / "a.tif", {"StripByteCounts": 0}))
    assert np.array_equal(np.asarray(image.to_pil())[..., 0], VALUES >> 8)


def test_check_image_tiff_missing_sizes_of_compressed_strips_are_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", {"StripByteCounts": 0}, compression="deflate")
    assert check_image(path) == "damaged TIFF (a strip or tile of 0 bytes)"


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_open_image_tiff_strips_left_out_are_black(tmp_path: Path, compression: str | None) -> None:
    numbers = {"StripByteCounts": 0, "StripOffsets": 0}
    image = open_image(write(tmp_path / "a.tif", numbers, compression=compression))
    assert not np.asarray(image.to_pil()).any()


def test_check_image_tiff_with_fewer_samples_than_colours_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", {"PhotometricInterpretation": 2})
    expected = "damaged TIFF (1 samples in a pixel, fewer than the 3 of its colours)"
    assert check_image(path) == expected
