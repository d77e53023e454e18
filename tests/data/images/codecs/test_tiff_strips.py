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


@pytest.mark.parametrize("tag", ["RowsPerStrip", "ImageWidth", "BitsPerSample", "Compression"])
@pytest.mark.parametrize("number", [0, 255])
def test_check_image_tiff_reason_of_wrong_tags_is_not_about_code(
    tmp_path: Path, tag: str, number: int
) -> None:
    reason = check_image(write(tmp_path / "a.tif", {tag: number})) or ""
    assert not any(part in reason for part in ("argument", "index", "indices", "Error", "object"))


def test_check_image_reason_of_a_wrong_header_is_not_about_code(tmp_path: Path) -> None:
    tags = write(tmp_path / "a.tif", {"StripOffsets": 0}).read_bytes()
    number = tags.index(struct.pack("<HH", 258, 3))  # BitsPerSample, now of a type of text
    (tmp_path / "a.tif").write_bytes(tags[: number + 2] + b"\x02" + tags[number + 3 :])
    assert check_image(tmp_path / "a.tif") == "damaged TIFF (invalid tags)"
    quantization = b"\xff\xdb\x00\x03\x00"  # without its table
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x02" + quantization)
    reason = check_image(tmp_path / "a.jpg")
    assert reason is not None
    assert "index" not in reason
