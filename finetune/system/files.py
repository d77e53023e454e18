"""Atomic writes of files and folders, and readable errors of the disk.

A file is written to a temporary path in the same folder, synced, and renamed, so that it is either
complete or absent. A path that is a symbolic link stays one: the file that it points to is written.
"""

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
"""Suffix of temporary files and folders; the same in all releases, which remove each other's."""

_DISK_ERRORS = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EFBIG: "the file exceeds the size limit",
    errno.ENOTDIR: "a component of the path is a file",
    errno.EEXIST: "a component of the path is a file",
    errno.EIO: "the device reported an I/O error",
    errno.ENAMETOOLONG: "the name is too long",
}


_LIBRARY_DISK_ERRORS = (
    "PytorchStreamWriter failed",
    "file write failed",
    "database or disk is full",
    "disk I/O error",
    "database is locked",
    "unable to open database file",
)

OUTPUT_REMEDY = "Free space there, or choose another --output."
"""Advice where ``--output`` names the file, which may lie in a run folder."""

_RUN_REMEDY = (
    "Free space there. Files written earlier are complete: continue the run with --resume."
)
_RUN_FILES = ("config.yaml", "manifest.csv")
_MAX_DEPTH = 4
"""Folders above a file of a run that may be the run folder."""


@contextmanager
def write_file_atomically(path: Path, remedy: str | None = None) -> Iterator[Path]:
    """Yield a temporary path that is renamed to ``path`` when the block succeeds.

    Args:
        path: File to write; of a link, the file that it points to.
        remedy: Advice at the end of the error message; None for the usual one.

    Raises:
        StorageError: The path is a device or a pipe, or the disk is full, read-only or fails; the
            partial file is removed.
    """
    with translate_disk_errors(path, remedy):
        target = _follow_links(path)
        if target.exists() and not (target.is_file() or target.is_dir()):
            reason = "it is a device or a pipe, which a file would replace"
            raise build_storage_error(path, reason, "Give the path of a file.")
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=_TEMP_SUFFIX, dir=target.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_get_umask())
            _fsync(temporary)
            temporary.replace(target)
            _fsync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def write_folder_atomically(path: Path, remedy: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` when the block succeeds.

    Args:
        path: Folder to write; of a link, the folder that it points to.
        remedy: Advice at the end of the error message; None for the usual one.

    Raises:
        StorageError: The disk is full, read-only or fails; the partial folder is removed.
    """
    with translate_disk_errors(path, remedy):
        target = _follow_links(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _make_temp_folder(target)
        try:
            yield temporary
            temporary.chmod(0o777 & ~_get_umask())
            for file in temporary.rglob("*"):
                if file.is_file():  # safetensors creates files that only the owner can read
                    file.chmod(0o666 & ~_get_umask())
                _fsync(file)
            if target.is_dir():
                old = _make_temp_folder(target)
                target.replace(old)
                temporary.replace(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.replace(target)
            _fsync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_stale_temp_files(folder: Path) -> None:
    """Remove the temporary files of killed processes below a folder without other writers."""
    for path in sorted(folder.rglob(f".*{_TEMP_SUFFIX}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def remove_stale_temp_folders(folder: Path) -> None:
    """Remove the temporary folders of killed processes that were creating ``folder``."""
    target = _follow_links(folder)
    for path in target.parent.glob(f".{glob.escape(target.name)}.*{_TEMP_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)


def check_writable(path: Path, remedy: str) -> None:
    """Check that a file can be written, before its content is computed.

    Args:
        path: Path of the file; its folder is created.
        remedy: Advice at the end of the error message.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    with translate_disk_errors(path, remedy):
        try:
            target = _follow_links(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=target.parent):
                pass
        except FileNotFoundError as error:  # for example below /proc
            raise build_storage_error(path, "no file can be created there", remedy) from error


def write_text(path: Path, text: str, remedy: str | None = None) -> None:
    """Write a text file in UTF-8 atomically.

    Args:
        path: File to write.
        text: Its content.
        remedy: Advice at the end of the error message; None for the usual one.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    with write_file_atomically(path, remedy) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_symlink(link: Path, target: str) -> None:
    """Point a symbolic link at ``target`` atomically; do nothing on file systems without links."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    with suppress(OSError):
        temporary.symlink_to(target)
        if link.is_symlink() or not link.exists():
            temporary.replace(link)
        temporary.unlink(missing_ok=True)


def explain_disk_error(
    error: BaseException, path: Path | str, remedy: str | None = None
) -> StorageError | None:
    """Return the disk failure that caused an error of any library as StorageError, or None.

    Args:
        error: Error of any library.
        path: File or folder that was written.
        remedy: Advice at the end of the message; None for ``--resume`` in a run folder, and else
            for another ``--output``.
    """
    if remedy is None:
        remedy = _RUN_REMEDY if _is_in_run(Path(path)) else OUTPUT_REMEDY
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StorageError):
            return cause
        if isinstance(cause, FinetuneError):
            return None  # its message already names the file that could not be read
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            return build_storage_error(path, _DISK_ERRORS[cause.errno], "Choose a shorter one.")
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
            return build_storage_error(path, _DISK_ERRORS[cause.errno], remedy)
        for number, reason in _DISK_ERRORS.items():
            if re.search(rf"(os error|code:) {number}\b", str(cause)):
                return build_storage_error(path, reason, remedy)
        if any(text in str(cause) for text in _LIBRARY_DISK_ERRORS):
            return build_storage_error(path, "the disk is full or failed", remedy)
        cause = cause.__cause__ or cause.__context__
    return None


def describe_disk_error(error: OSError) -> str:
    """Return what is wrong with a disk, as a clause for a message."""
    reason = _DISK_ERRORS.get(error.errno or 0)
    return reason or (error.strerror or str(error) or type(error).__name__)


def build_storage_error(path: Path | str, reason: str, remedy: str) -> StorageError:
    """Return the error of a file or folder that cannot be written for a reason."""
    error = StorageError(f"Cannot write {path}: {reason}. {remedy}")
    error.reason = reason
    return error


@contextmanager
def translate_disk_errors(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Raise errors of the disk within the block as StorageError with a remedy.

    Args:
        path: File or folder that the block writes.
        remedy: See ``explain_disk_error``.

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


def _follow_links(path: Path) -> Path:
    """Return the absolute path that a path stands for, which need not exist."""
    return Path(os.path.realpath(path))


def _is_in_run(path: Path) -> bool:
    """Return whether a path is a run folder, or below one."""
    folders = (path, *path.absolute().parents)[: _MAX_DEPTH + 1]
    with suppress(OSError):
        return any(all((folder / name).is_file() for name in _RUN_FILES) for folder in folders)
    return False


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
