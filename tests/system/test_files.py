"""Files and folders that are whole or absent."""

import errno
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune.errors import DataError, StorageError
from finetune.system.files import (
    explain_disk_error,
    replace_symlink,
    translate_disk_errors,
    write_file_atomically,
    write_folder_atomically,
    write_text,
)
from tests.support.helpers import names_in, tiny_disk


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Return a disk of 64 kB."""
    with tiny_disk(tmp_path / "disk", size="64k") as disk:
        yield disk


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_a_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.txt"
    with write_file_atomically(file) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == file.parent, "moving over file systems is no single step"
        assert not file.exists()
    assert file.read_text() == "whole"
    assert names_in(file.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(type(error)) as caught, write_file_atomically(file) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error, "what is no trouble of the disk passes as it is"
    assert file.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    for name in ("first", "second"):
        with write_folder_atomically(folder) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / name).write_text(name)
            assert (folder / "deep" / "first").exists() is (name == "second")
    assert [path.name for path in (folder / "deep").iterdir()] == ["second"]
    assert names_in(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(type(error)), write_folder_atomically(folder) as temporary:
        (temporary / "new").touch()
        raise error
    assert names_in(folder) == ["old"]
    assert names_in(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    ("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
)
def test_the_umask_is_respected(
    tmp_path: Path, mask: int, file_mode: int, folder_mode: int
) -> None:
    with umask(mask):
        write_text(tmp_path / "a.txt", "a")
        with write_folder_atomically(tmp_path / "folder"):
            pass
        assert os.umask(mask) == mask, "asking for the mask does not change it"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == file_mode
    assert (tmp_path / "folder").stat().st_mode & 0o777 == folder_mode


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "bée\n")
    assert (tmp_path / "a.txt").read_bytes() == b"b\xc3\xa9e\n"


def test_a_full_disk_leaves_the_old_file_and_says_so(full: Path) -> None:
    file = full / "a.bin"
    file.write_bytes(b"old")
    with pytest.raises(StorageError, match=r"a\.bin: no space is left .*--output"):
        write_text(file, "x" * 200_000)
    assert file.read_bytes() == b"old"
    assert names_in(full) == ["a.bin"]


def test_a_full_disk_leaves_the_old_folder(full: Path) -> None:
    folder = full / "bundle"
    with write_folder_atomically(folder) as temporary:
        (temporary / "a").write_text("old")
    with (
        pytest.raises(StorageError, match="no space is left"),
        write_folder_atomically(folder) as temporary,
    ):
        (temporary / "a").write_bytes(bytes(200_000))
    assert (folder / "a").read_text() == "old"
    assert names_in(full) == ["bundle"]


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a part of the path is a file"):
        write_text(tmp_path / "file" / "b" / "c.txt", "")


def test_a_read_only_disk_is_named(full: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(full)], check=True, capture_output=True)
    with pytest.raises(StorageError, match="read-only"):
        write_text(full / "a.txt", "")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        # what safetensors and torch make of the same
        (
            RuntimeError("Error while serializing: I/O error: No space left (os error 28)"),
            "no space",
        ),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/3"), "full"),
    ],
)
def test_the_disk_is_found_behind_the_errors_of_any_library(error: Exception, reason: str) -> None:
    outer = RuntimeError("epoch failed")
    outer.__cause__ = error
    for seen in (error, outer):
        explained = explain_disk_error(seen, "runs/a")
        assert explained is not None
        assert str(explained).startswith("Cannot write runs/a: ")
        assert reason in str(explained)


def test_an_explained_error_stays_itself_and_others_are_none_of_the_disks() -> None:
    error = StorageError("explained")
    assert explain_disk_error(error, "a") is error
    assert explain_disk_error(FileNotFoundError(errno.ENOENT, "No such file"), "a") is None
    assert explain_disk_error(ValueError("28"), "a") is None


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def test_the_disk_is_explained_with_the_remedy_of_the_place() -> None:
    message = r"^Cannot write a/b: no space .*\. Take another\.$"
    with (
        pytest.raises(StorageError, match=message) as caught,
        translate_disk_errors(Path("a/b"), "Take another."),
    ):
        raise full_disk()
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.args[0] == errno.ENOSPC
    with pytest.raises(StorageError, match="--output"), translate_disk_errors(Path("a/b")):
        raise full_disk()


def test_the_full_disk_of_a_database_is_one() -> None:
    with pytest.raises(StorageError, match="full"), translate_disk_errors(Path("a")):
        raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        sqlite3.OperationalError("no such table: images"),
        KeyboardInterrupt(),
        StorageError("explained already"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_of_the_disk_passes_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translate_disk_errors(Path("a")):
        raise error
    assert caught.value is error


def test_an_error_that_says_by_itself_what_could_not_be_read_passes_as_it_is() -> None:
    error = DataError("x.jpg may not be read")
    error.__cause__ = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(DataError) as caught, translate_disk_errors(Path("a")):
        raise error
    assert caught.value is error


def test_a_link_is_pointed_elsewhere(tmp_path: Path) -> None:
    link = tmp_path / "latest"
    for name in ("one", "two", "two"):
        (tmp_path / name).mkdir(exist_ok=True)
        replace_symlink(link, name)
        assert link.readlink() == Path(name)
    assert names_in(tmp_path) == ["latest", "one", "two"]


def test_a_dangling_link_is_replaced_and_a_real_folder_is_not(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("gone")
    replace_symlink(tmp_path / "latest", "new")
    assert (tmp_path / "latest").readlink() == Path("new")
    (tmp_path / "mine").mkdir()
    replace_symlink(tmp_path / "mine", "new")
    assert not (tmp_path / "mine").is_symlink()
    assert names_in(tmp_path) == ["latest", "mine"]


def test_a_place_that_takes_no_link_goes_without(tmp_path: Path) -> None:
    replace_symlink(tmp_path / "missing" / "latest", "new")
    assert names_in(tmp_path) == []
