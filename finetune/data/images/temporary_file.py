"""Temporary files, in memory where possible, for libraries that read files by their path."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TemporaryFile:
    """File with given content.

    Attributes:
        path: Path by which this process can read it.
        close: Function that removes it.
    """

    path: Path
    close: Callable[[], None]


def create_temporary_file(data: bytes) -> TemporaryFile:
    """Return a file with given content, in memory where the system allows it.

    Linux has files without a name, which this process reads below ``/proc``; elsewhere it is a
    temporary file. The caller closes it.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("image")
        path = Path(f"/proc/self/fd/{descriptor}")
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        if path.exists():  # /proc is not mounted in every container
            return TemporaryFile(path, lambda: os.close(descriptor))
        os.close(descriptor)
    descriptor, name = tempfile.mkstemp(prefix="finetune-image-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)

    def remove() -> None:
        with suppress(FileNotFoundError):
            Path(name).unlink()

    return TemporaryFile(Path(name), remove)
