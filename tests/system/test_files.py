"""Atomic writes, removal of temporary files, and explanations of disk errors."""

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
from tests.support.helpers import list_names, mount_tiny_disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield the mount point of a file system of 64 kB."""
    with mount_tiny_disk(tmp_path / "disk", size="64k") as disk:
        yield disk


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_write_file_atomically_renames_at_the_end_of_the_block(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.txt"
    with write_file_atomically(file) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == file.parent, "a rename across file systems is not atomic"
        assert not file.exists()
    assert file.read_text() == "whole"
    assert list_names(file.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_write_file_atomically_exception_keeps_the_old_file(
    tmp_path: Path, error: BaseException
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(type(error)) as caught, write_file_atomically(file) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert caught.value is error, "errors of other kinds are not replaced"
    assert file.read_text() == "old"
    assert list_names(tmp_path) == ["a.txt"]


def test_write_folder_atomically_replaces_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    for name in ("first", "second"):
        with write_folder_atomically(folder) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / name).write_text(name)
            assert (folder / "deep" / "first").exists() is (name == "second")
    assert [path.name for path in (folder / "deep").iterdir()] == ["second"]
    assert list_names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_write_folder_atomically_exception_keeps_the_old_folder(
    tmp_path: Path, error: BaseException
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(type(error)), write_folder_atomically(folder) as temporary:  # noqa: PT012
        (temporary / "new").touch()
        raise error
    assert list_names(folder) == ["old"]
    assert list_names(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    ("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
)
def test_atomic_writes_respect_the_umask(
    tmp_path: Path, mask: int, file_mode: int, folder_mode: int
) -> None:
    with umask(mask):
        write_text(tmp_path / "a.txt", "a")
        with write_folder_atomically(tmp_path / "folder"):
            pass
        assert os.umask(mask) == mask, "reading the umask does not change it"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == file_mode
    assert (tmp_path / "folder").stat().st_mode & 0o777 == folder_mode


def test_write_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "bée\n")
    assert (tmp_path / "a.txt").read_bytes() == b"b\xc3\xa9e\n"


def test_write_text_full_disk_raises_storage_error_and_keeps_old_file(small_disk: Path) -> None:
    file = small_disk / "a.bin"
    file.write_bytes(b"old")
    with pytest.raises(StorageError, match=r"a\.bin: no space .*--output"):
        write_text(file, "x" * 200_000)
    assert file.read_bytes() == b"old"
    assert list_names(small_disk) == ["a.bin"]


def test_write_folder_atomically_full_disk_keeps_the_old_folder(small_disk: Path) -> None:
    folder = small_disk / "bundle"
    with write_folder_atomically(folder) as temporary:
        (temporary / "a").write_text("old")
    with (
        pytest.raises(StorageError, match="no space"),
        write_folder_atomically(folder) as temporary,
    ):
        (temporary / "a").write_bytes(bytes(200_000))
    assert (folder / "a").read_text() == "old"
    assert list_names(small_disk) == ["bundle"]


def test_write_text_parent_is_a_file_raises_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/b/c\.txt: .*is a file"):
        write_text(tmp_path / "file" / "b" / "c.txt", "")


def test_write_text_read_only_disk_raises_storage_error(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, capture_output=True)
    with pytest.raises(StorageError, match="read-only"):
        write_text(small_disk / "a.txt", "")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        # the same failure as safetensors and torch report it
        (
            RuntimeError("Error while serializing: I/O error: No space left (os error 28)"),
            "no space",
        ),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/3"), "full"),
    ],
)
def test_explain_disk_error_recognises_errors_of_libraries(error: Exception, reason: str) -> None:
    outer = RuntimeError("epoch failed")
    outer.__cause__ = error
    for candidate in (error, outer):
        explained = explain_disk_error(candidate, "runs/a")
        assert explained is not None
        assert str(explained).startswith("Cannot write runs/a: ")
        assert reason in str(explained)


def test_explain_disk_error_returns_storage_errors_and_ignores_others() -> None:
    error = StorageError("explained")
    assert explain_disk_error(error, "a") is error
    assert explain_disk_error(FileNotFoundError(errno.ENOENT, "No such file"), "a") is None
    assert explain_disk_error(ValueError("28"), "a") is None


def build_enospc_error() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def test_translate_disk_errors_names_path_and_remedy() -> None:
    message = r"^Cannot write a/b: no space .*\. Take another\.$"
    with (
        pytest.raises(StorageError, match=message) as caught,
        translate_disk_errors(Path("a/b"), "Take another."),
    ):
        raise build_enospc_error()
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.args[0] == errno.ENOSPC
    with pytest.raises(StorageError, match="--output"), translate_disk_errors(Path("a/b")):
        raise build_enospc_error()


def test_translate_disk_errors_recognises_sqlite() -> None:
    with pytest.raises(StorageError, match="full"), translate_disk_errors(Path("a")):
        raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        sqlite3.OperationalError("no such table: images"),
        KeyboardInterrupt(),
        StorageError("already explained"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_translate_disk_errors_passes_other_errors_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translate_disk_errors(Path("a")):
        raise error
    assert caught.value is error


def test_translate_disk_errors_passes_finetune_errors_unchanged() -> None:
    error = DataError("x.jpg may not be read")
    error.__cause__ = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(DataError) as caught, translate_disk_errors(Path("a")):
        raise error
    assert caught.value is error


def test_writes_through_a_link_reach_its_target_and_keep_the_link(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "a.txt").write_text("old")
    file, folder = tmp_path / "here" / "a.txt", tmp_path / "here" / "folder"
    file.symlink_to("../there/a.txt")
    with write_file_atomically(file) as temporary:
        temporary.write_text("new")
        assert temporary.parent == (tmp_path / "there").resolve(), "one file system"
    (tmp_path / "there" / "folder").mkdir()
    folder.symlink_to(tmp_path / "there" / "folder")
    for name in ("first", "second"):
        with write_folder_atomically(folder) as temporary:
            (temporary / name).touch()
    assert file.is_symlink()
    assert folder.is_symlink()
    assert (tmp_path / "there" / "a.txt").read_text() == "new"
    assert list_names(tmp_path / "there" / "folder") == ["second"]
    assert list_names(tmp_path / "here") == list_names(tmp_path / "there") == ["a.txt", "folder"]


def test_writes_through_a_dangling_link_create_its_target(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "folder"
    file.symlink_to("new/b.txt")
    folder.symlink_to("new/c")
    write_text(file, "a")
    with write_folder_atomically(folder):
        pass
    assert file.is_symlink()
    assert folder.is_symlink()
    assert list_names(tmp_path / "new") == ["b.txt", "c"]


def test_errors_of_a_write_through_a_link_name_the_given_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    link = tmp_path / "link.txt"
    link.symlink_to("file/b.txt")
    with pytest.raises(StorageError, match=r"link\.txt: .*is a file"):
        write_text(link, "")
    assert link.is_symlink()


def test_devices_behind_links_are_not_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link.txt"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with pytest.raises(StorageError, match=r"link\.txt: it is a device or a pipe"):
        write_text(link, "")
    assert pipe.is_fifo()
    assert list_names(tmp_path) == ["link.txt", "pipe"]


def test_remedy_is_resume_in_run_folders_only(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "manifest.csv"):
        (run / name).touch()
    for path in (run, run / "checkpoints" / "last.ckpt"):
        inside = explain_disk_error(build_enospc_error(), path)
        assert str(inside).endswith("complete: continue the run with --resume.")
    outside = explain_disk_error(build_enospc_error(), tmp_path / "predictions.csv")
    assert str(outside).endswith("no space is left on the device. Free space there, or choose "
                                 "another --output.")  # fmt: skip
    given = explain_disk_error(build_enospc_error(), run / "a.csv", "Choose another --csv.")
    assert str(given).endswith("device. Choose another --csv.")


def test_write_text_too_long_name_raises_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"x: the name is too long\. Choose a shorter one\.$"):
        write_text(tmp_path / ("x" * 300), "")


def test_replace_symlink_changes_the_target(tmp_path: Path) -> None:
    link = tmp_path / "latest"
    for name in ("one", "two", "two"):
        (tmp_path / name).mkdir(exist_ok=True)
        replace_symlink(link, name)
        assert link.readlink() == Path(name)
    assert list_names(tmp_path) == ["latest", "one", "two"]


def test_replace_symlink_replaces_dangling_links_but_no_folders(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("gone")
    replace_symlink(tmp_path / "latest", "new")
    assert (tmp_path / "latest").readlink() == Path("new")
    (tmp_path / "mine").mkdir()
    replace_symlink(tmp_path / "mine", "new")
    assert not (tmp_path / "mine").is_symlink()
    assert list_names(tmp_path) == ["latest", "mine"]


def test_replace_symlink_in_missing_folder_does_nothing(tmp_path: Path) -> None:
    replace_symlink(tmp_path / "missing" / "latest", "new")
    assert list_names(tmp_path) == []
