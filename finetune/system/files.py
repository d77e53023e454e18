"""Files that are whole or absent: written beside their place, synced, moved there in one step."""

import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune.errors import FinetuneError, StorageError

_TEMP_SUFFIX = ".part"
"""Ends the names of what is being written."""

_DISK_ERRORS = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EFBIG: "the file is larger than is allowed",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a part of the path is a file",
    errno.EIO: "the device failed",
}


_LIBRARY_DISK_ERRORS = (
    "PytorchStreamWriter failed",
    "file write failed",
    "database or disk is full",
    "disk I/O error",
    "database is locked",
    "unable to open database file",
)

_REMEDY = (
    "Make room there, or begin elsewhere with another --output; what was written before is whole, "
    "and a run goes on with --resume."
)


@contextmanager
def write_file_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that becomes ``path`` when the block ends well.

    Raises:
        StorageError: The disk is full, read-only or fails; nothing of the file is left behind.
    """
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=_TEMP_SUFFIX, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_get_umask())
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def write_folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that replaces ``path`` when the block ends well.

    Raises:
        StorageError: The disk is full, read-only or fails; nothing of the folder is left behind.
    """
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _make_temp_folder(path)
        try:
            yield temporary
            temporary.chmod(0o777 & ~_get_umask())
            for file in temporary.rglob("*"):
                if file.is_file():  # safetensors makes files that only their owner reads
                    file.chmod(0o666 & ~_get_umask())
                _fsync(file)
            if path.is_dir():
                old = _make_temp_folder(path)
                path.replace(old)
                temporary.replace(path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.replace(path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_stale_temp_files(folder: Path) -> None:
    """Remove what a killed process was writing below a folder that nobody else writes to."""
    for left in sorted(folder.rglob(f".*{_TEMP_SUFFIX}")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):
                left.unlink(missing_ok=True)


def remove_stale_temp_folders(folder: Path) -> None:
    """Remove what a killed process left beside a folder that it was about to make."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*{_TEMP_SUFFIX}"):
        shutil.rmtree(left, ignore_errors=True)


def check_writable(path: Path, remedy: str) -> None:
    """Raise where a file could not be written, before the work of what it is to hold.

    Args:
        path: The file; its folder is made.
        remedy: What to do instead, for the message.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    with translate_disk_errors(path, remedy):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except FileNotFoundError as error:  # as below /proc, where nothing can be made
            raise _build_storage_error(path, "no file can be made there", remedy) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    with write_file_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_symlink(link: Path, target: str) -> None:
    """Point a symbolic link at ``target`` in one step; file systems without links go without."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    with suppress(OSError):
        temporary.symlink_to(target)
        if link.is_symlink() or not link.exists():
            temporary.replace(link)
        temporary.unlink(missing_ok=True)


def explain_disk_error(
    error: BaseException, path: Path | str, remedy: str = _REMEDY
) -> StorageError | None:
    """Return the disk's trouble behind an error of any library, in plain words, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StorageError):
            return seen
        if isinstance(seen, FinetuneError):
            return None  # it says by itself what could not be read
        if isinstance(seen, OSError) and seen.errno in _DISK_ERRORS:
            return _build_storage_error(path, _DISK_ERRORS[seen.errno], remedy)
        for number, reason in _DISK_ERRORS.items():
            if re.search(rf"(os error|code:) {number}\b", str(seen)):
                return _build_storage_error(path, reason, remedy)
        if any(words in str(seen) for words in _LIBRARY_DISK_ERRORS):
            return _build_storage_error(path, "the disk is full or failed", remedy)
        seen = seen.__cause__ or seen.__context__
    return None


def _build_storage_error(path: Path | str, reason: str, remedy: str) -> StorageError:
    return StorageError(f"Cannot write {path}: {reason}. {remedy}")


@contextmanager
def translate_disk_errors(path: Path, remedy: str = _REMEDY) -> Iterator[None]:
    """Raise the disk's trouble in the block in plain words, and what to do about it.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    try:
        yield
    except Exception as error:
        explained = explain_disk_error(error, path, remedy)
        if explained is None:
            raise
        raise explained from error


def _make_temp_folder(path: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_TEMP_SUFFIX, dir=path.parent))


def _get_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
