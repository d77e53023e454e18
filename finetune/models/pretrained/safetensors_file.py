"""Tensors of safetensors files, and the name of other content behind that suffix."""

import zipfile
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

_PICKLE_MARK = 0x80
_PICKLE_PROTOCOLS = (2, 3, 4, 5)
_HEADER_BEGIN = 8
"""Position of the header, which is JSON, in a safetensors file; its size is before it."""


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Raises:
        OSError: The file cannot be read.
        SafetensorError: It is damaged.
        ValueError: Its content is a pickle, which is not opened.
    """
    check_no_pickle(path)
    return load_file(path)


def check_no_pickle(path: Path) -> None:
    """Check that a file is no pickle under the name of another format.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is one.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BEGIN + 1)
    is_pickle = (
        len(head) > 1
        and head[0] == _PICKLE_MARK
        and head[1] in _PICKLE_PROTOCOLS
        and head[_HEADER_BEGIN:] != b"{"
    )
    if is_pickle or _has_pickle_entry(path):
        raise ValueError(
            f"{path.name} contains a pickle, as torch.save writes, and no safetensors. A pickle "
            f"can run code, and is not opened under this name"
        )


def _has_pickle_entry(path: Path) -> bool:
    """Return whether a file is an archive of ``torch.save``."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
