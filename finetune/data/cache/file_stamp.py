"""What tells that a file has not changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class FileState(NamedTuple):
    """What tells that a file is the one that an array was made of.

    Attributes:
        path: Absolute.
        num_bytes: Its size.
        ctime_ns: When it or its name last changed; unlike the time of writing nothing sets it back.
    """

    path: str
    num_bytes: int
    ctime_ns: int


def file_states(paths: Sequence[Path]) -> list[FileState]:
    """Return the size and time of each file; of a missing one, -1."""
    states = []
    for path in paths:
        try:
            found = path.stat()
            states.append(FileState(str(path), found.st_size, found.st_ctime_ns))
        except OSError:
            states.append(FileState(str(path), -1, -1))
    return states
