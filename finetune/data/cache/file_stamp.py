"""What tells that a file has not changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class FileStamp(NamedTuple):
    """What tells that a file is the one that an array was made of.

    Attributes:
        path: Absolute.
        num_bytes: Its size.
        ctime_ns: When it or its name last changed; unlike the time of writing nothing sets it back.
    """

    path: str
    num_bytes: int
    ctime_ns: int


def read_file_stamps(paths: Sequence[Path]) -> list[FileStamp]:
    """Return the size and time of each file; of a missing one, -1."""
    states = []
    for path in paths:
        try:
            found = path.stat()
            states.append(FileStamp(str(path), found.st_size, found.st_ctime_ns))
        except OSError:
            states.append(FileStamp(str(path), -1, -1))
    return states
