"""Stamps that detect changed files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class FileStamp(NamedTuple):
    """Identity of a file's content: a stored array is valid while the stamp of its file is equal.

    Attributes:
        path: Absolute path.
        num_bytes: Size of the file; -1 for a missing file.
        ctime_ns: Time of the last change of the content or name in ns, -1 for a missing file.
            Unlike the modification time, programs such as rsync cannot set it back.
    """

    path: str
    num_bytes: int
    ctime_ns: int


def read_file_stamps(paths: Sequence[Path]) -> list[FileStamp]:
    """Return the stamp of each file, with size and time -1 for missing files."""
    stamps = []
    for path in paths:
        try:
            status = path.stat()
            stamps.append(FileStamp(str(path), status.st_size, status.st_ctime_ns))
        except OSError:
            stamps.append(FileStamp(str(path), -1, -1))
    return stamps
