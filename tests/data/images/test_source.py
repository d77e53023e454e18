"""Tests of packed strings and of sources of image files."""

import gc
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from finetune.data.images.jpeg import LazyJpeg
from finetune.data.images.source import FileSource, MemorySource, PackedStrings
from finetune.errors import DataError
from finetune.types import ReadOptions
from tests.support.helpers import create_noise
from tests.support.pictures import write_jpeg

NAMES = ["/a/b.jpg", "", "/bée/蜂.png", "a", "", os.fsdecode(b"/caf\xe9/\xff.jpg"), "🐝" * 100]


@pytest.mark.parametrize("names", [NAMES, [], [""], ["", "", ""]])
def test_packed_strings_roundtrip(names: list[str]) -> None:
    packed = PackedStrings(names)
    assert len(packed) == len(names)
    assert list(packed) == names
    assert [packed[row] for row in range(len(names))] == names
    assert list(pickle.loads(pickle.dumps(packed))) == names


@pytest.mark.parametrize("row", [-1, len(NAMES), 10**9])
def test_packed_strings_invalid_row_raises_index_error(row: int) -> None:
    with pytest.raises(IndexError, match=str(row)):
        PackedStrings(NAMES)[row]


def test_packed_strings_pickle_is_small() -> None:
    names = [f"{number:020}" for number in range(100_000)]
    packed = PackedStrings(names)
    assert len(pickle.dumps(packed)) < 100_000 * (20 + 8) + 10_000
    assert packed[77_777] == names[77_777]


def test_file_source_opens_and_names_rows(tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / os.fsdecode(b"\xe9.png")]
    create_noise(seed=0).save(files[0])
    write_jpeg(files[1], create_noise(seed=1))
    create_noise(seed=2).save(files[2])
    source = FileSource(files)
    assert len(source) == 3
    assert [source.get_name(row) for row in range(3)] == [str(file) for file in files]
    for row in (0, 2):
        np.testing.assert_array_equal(
            np.asarray(source.open(row).to_pil()), np.asarray(create_noise(seed=row))
        )
    assert isinstance(source.open(1), LazyJpeg)
    copied = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(
        np.asarray(copied.open(1).to_pil()), np.asarray(source.open(1).to_pil())
    )


def test_file_source_max_pixels_raises_data_error(tmp_path: Path) -> None:
    create_noise(width=12, height=10).save(tmp_path / "a.png")
    write_jpeg(tmp_path / "b.jpg", create_noise(width=12, height=10))
    files = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for row in (0, 1):
        assert FileSource(files, options=ReadOptions(max_pixels=120)).open(row).width == 12
        with pytest.raises(DataError, match="too large: 12x10"):
            FileSource(files, options=ReadOptions(max_pixels=119)).open(row)


IMAGE_FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"]


@pytest.mark.parametrize("format_name", IMAGE_FORMATS)
def test_memory_source_reads_the_pixels_that_a_file_has(format_name: str, tmp_path: Path) -> None:
    file = tmp_path / "a"
    create_noise(seed=0).save(file, format_name)
    source = MemorySource([file.read_bytes()], ["upload"])
    assert (len(source), source.get_name(0)) == (1, "upload")
    np.testing.assert_array_equal(
        np.asarray(source.open(0).to_pil()), np.asarray(FileSource([file]).open(0).to_pil())
    )


def test_memory_source_gives_the_reasons_of_files_without_a_path(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    create_noise(seed=0).save(image)
    whole = image.read_bytes()
    for number, data in enumerate([b"", b"no image", whole[: len(whole) // 2], b"\0" * 99]):
        file = tmp_path / f"{number}.png"
        file.write_bytes(data)
        with pytest.raises(DataError) as of_file:
            FileSource([file]).open(0).to_pil()
        with pytest.raises(DataError) as of_memory:
            MemorySource([data], ["upload"]).open(0).to_pil()
        assert str(of_memory.value) == str(of_file.value)
    small = ReadOptions(max_pixels=100)
    with pytest.raises(DataError, match="too large"):
        MemorySource([whole], ["upload"]).replace_options(small).open(0)


def test_memory_source_decodes_a_jpeg_after_others_were_opened_and_closes_its_files() -> None:
    buffer = io.BytesIO()
    create_noise(seed=0).convert("CMYK").save(buffer, "JPEG")
    source = MemorySource([buffer.getvalue()] * 20, ["upload"] * 20)
    gc.collect()  # files of earlier tests
    before = len(list(Path("/proc/self/fd").iterdir()))
    images = [source.open(row) for row in range(20)]
    first = [np.asarray(image.to_pil()) for image in images]
    assert all(np.array_equal(pixels, first[0]) for pixels in first)
    del images
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
