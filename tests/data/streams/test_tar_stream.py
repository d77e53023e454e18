"""Tests of tar files: damage and links have a row with the reason; none ends a file silently."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from finetune.data.streams.open_stream import open_stream
from finetune.data.streams.stream_image import StreamImage

_BLOCK = tarfile.BLOCKSIZE
_NUM_MEMBERS = 4


def _read(content: bytes, folder: Path, name: str = "a.tar") -> list[StreamImage]:
    file = folder / name
    file.write_bytes(content)
    return list(open_stream([file]).iterate())


def _build_tar(first: int = 0, tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a tar of a few members that are called images."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for number in range(first, first + _NUM_MEMBERS):
            info = tarfile.TarInfo(f"{number}é.png")
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes([number + 1]) * info.size))
    return buffer.getvalue()


def _find_header(content: bytes, row: int) -> int:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return tar.getmembers()[row].offset


def _flip(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]


def _assert_damaged_after(images: list[StreamImage], num_images: int, file: Path) -> None:
    assert [image.reason is None for image in images] == [True] * num_images + [False]
    assert images[-1].name == str(file)
    assert images[-1].container == 0
    assert not images[-1].is_io_error, "a rerun would find the same"
    assert str(images[-1].reason).startswith("damaged or incomplete tar file (")
    assert str(images[-1].reason).endswith(f"{num_images} images before that")


@pytest.mark.parametrize("row", range(_NUM_MEMBERS))
@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content, offset: _flip(content, offset + 20), id="flipped bit"),
        pytest.param(lambda content, offset: content[: offset + 300], id="cut in a header"),
        pytest.param(lambda content, offset: content[:offset], id="cut between members"),
        pytest.param(
            lambda content, offset: content[:offset] + bytes(_BLOCK) + content[offset + _BLOCK :],
            id="header of zeros",
        ),
    ],
)
def test_damaged_header_is_a_row_with_the_reason(
    tmp_path: Path, damage: Callable[[bytes, int], bytes], row: int, tar_format: int
) -> None:
    content = _build_tar(tar_format=tar_format)
    images = _read(damage(content, _find_header(content, row)), tmp_path)
    _assert_damaged_after(images, row, tmp_path / "a.tar")


def test_tar_without_the_mark_of_its_end_is_incomplete(tmp_path: Path) -> None:
    content = _build_tar()
    end = len(content.rstrip(b"\0"))
    end += -end % _BLOCK
    images = _read(content[:end], tmp_path)
    _assert_damaged_after(images, _NUM_MEMBERS, tmp_path / "a.tar")
    assert "the mark of the end is missing" in str(images[-1].reason)
    for num_zeros in (_BLOCK, _BLOCK + 100, 2 * _BLOCK):
        images = _read(content[:end] + bytes(num_zeros), tmp_path)
        assert [image.reason for image in images] == [None] * _NUM_MEMBERS


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".tar", bytes), (".tar.gz", gzip.compress), (".tar.bz2", bz2.compress),
     (".tar.xz", lzma.compress)],
)  # fmt: skip
def test_joined_tars_are_read_to_the_last_one(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    files = [_build_tar(), _build_tar(_NUM_MEMBERS)]
    images = _read(b"".join(map(compress, files)), tmp_path, f"a{suffix}")
    names = [Path(image.name).name for image in images]
    assert names == [f"{number}é.png" for number in range(2 * _NUM_MEMBERS)]
    damaged = _flip(files[1], _find_header(files[1], 1) + 20)
    images = _read(compress(files[0]) + compress(damaged), tmp_path, f"a{suffix}")
    _assert_damaged_after(images, _NUM_MEMBERS + 1, tmp_path / f"a{suffix}")


def test_checksum_of_a_compressed_tar_is_compared(tmp_path: Path) -> None:
    content = gzip.compress(_build_tar())
    images = _read(_flip(content, len(content) - 6), tmp_path, "a.tgz")
    _assert_damaged_after(images, _NUM_MEMBERS, tmp_path / "a.tgz")


def test_empty_tar_file_is_damaged_and_one_of_zeros_is_not(tmp_path: Path) -> None:
    _assert_damaged_after(_read(b"", tmp_path), 0, tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(_build_tar())
    (tmp_path / "a.tar").write_bytes(bytes(tarfile.RECORDSIZE))
    images = list(open_stream([tmp_path / "{a,b}.tar"]).iterate())
    assert [image.reason for image in images] == [None] * _NUM_MEMBERS


def test_links_to_images_are_rows_with_the_option_that_avoids_them(tmp_path: Path) -> None:
    source = tmp_path / "d"
    source.mkdir()
    (source / "a.png").write_bytes(b"content")
    os.link(source / "a.png", source / "b.png")
    (source / "c.png").symlink_to("a.png")
    (source / "d.txt").symlink_to("a.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for file in sorted(source.iterdir()):
            tar.add(file, f"./d/{file.name}")
    images = list(open_stream([tmp_path / "a.tar"]).iterate())
    name = f"{tmp_path}/a.tar/d"
    assert [(image.name, image.reason, image.container) for image in images] == [
        (f"{name}/a.png", None, 0),
        (f"{name}/b.png", _describe("a hard link", "d/a.png", "--hard-dereference"), 0),
        (f"{name}/c.png", _describe("a symbolic link", "a.png", "--dereference"), 0),
    ]


def _describe(kind: str, target: str, option: str) -> str:
    return f"{kind} to {target} in the tar; write it with tar {option}"


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
def test_named_options_of_tar_keep_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"content")
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("a.png")
    subprocess.run(
        ["tar", "--hard-dereference", "--dereference", "-cf", "x.tar", "a.png", "b.png", "c.png"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    images = list(open_stream([tmp_path / "x.tar"]).iterate())
    assert [image.data for image in images] == [b"content"] * 3


def test_flipped_bit_in_any_header_byte_loses_no_image_silently(tmp_path: Path) -> None:
    content = _build_tar()
    for row, byte in product(range(_NUM_MEMBERS), range(0, _BLOCK, 37)):
        images = _read(_flip(content, _find_header(content, row) + byte), tmp_path)
        _assert_damaged_after(images, row, tmp_path / "a.tar")
