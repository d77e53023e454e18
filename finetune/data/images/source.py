"""Sources of the images of a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from finetune.data.images.decode import open_image
from finetune.data.images.lazy_image import LazyImage
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions


class ImageSource(Protocol):
    """Source of N images."""

    def __len__(self) -> int:
        """Return N."""

    def open(self, row: int) -> LazyImage:
        """Return the image of a row in [0, N)."""

    def get_name(self, row: int) -> str:
        """Return the name of a row for messages."""


class PathSource:
    """Base of sources whose rows are named by their image files.

    Args:
        paths: Image files, shape (N,).
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = PackedStrings([str(path) for path in paths])

    def __len__(self) -> int:
        return len(self.paths)

    def get_name(self, row: int) -> str:
        """Return the path of a row's file."""
        return self.paths[row]


class FileSource(PathSource):
    """Source that opens image files.

    Args:
        paths: Image files, shape (N,).
        options: How image files are read.
    """

    def __init__(
        self, paths: Sequence[Path], *, options: ReadOptions = DEFAULT_READ_OPTIONS
    ) -> None:
        super().__init__(paths)
        self.options = options

    def open(self, row: int) -> LazyImage:
        """Return the image of a row.

        Raises:
            DataError: The file cannot be read.
        """
        return open_image(Path(self.paths[row]), options=self.options)


class PackedStrings(Sequence[str]):
    """Read-only sequence of strings in one buffer.

    A list of a million strings is a million objects, and every worker that updates their reference
    counts copies their memory pages; this class has two buffers, which all workers share.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        # file names need not be valid Unicode
        encoded = [string.encode(errors="surrogateescape") for string in strings]
        self._offsets = np.cumsum([0, *map(len, encoded)])
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, item: int) -> str:  # type: ignore[override]
        if not 0 <= item < len(self):
            raise IndexError(item)
        data = self._bytes[self._offsets[item] : self._offsets[item + 1]]
        return data.decode(errors="surrogateescape")
