"""Sources of the images of a dataset."""

import weakref
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from finetune.data.images.decode import open_image
from finetune.data.images.lazy_image import LazyImage
from finetune.data.images.temporary_file import create_temporary_file
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions


class ImageSource(Protocol):
    """Source of N images."""

    def __len__(self) -> int:
        """Return N."""

    def open(self, row: int) -> LazyImage:
        """Return the image of a row in [0, N)."""

    def get_name(self, row: int) -> str:
        """Return the name of a row for messages."""


class EncodedSource(ImageSource, Protocol):
    """Source of N images as files contain them, which the read options turn into pixels."""

    def replace_options(self, options: ReadOptions) -> Self:
        """Return the source of the same images, read with other options."""


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

    def replace_options(self, options: ReadOptions) -> Self:
        """Return the source of the same files, read with other options."""
        other = copy(self)
        other.options = options
        return other

    def open(self, row: int) -> LazyImage:
        """Return the image of a row.

        Raises:
            DataError: The file cannot be read.
        """
        return open_image(Path(self.paths[row]), options=self.options)


class MemorySource:
    """Source of images whose files are in memory, such as uploads and rows of a table.

    They are read by the same code as files, with the same limits and reasons.

    Args:
        items: Content of an image file in any format that files may have, shape (N,).
        names: Names of the images for messages and predictions, shape (N,).
        options: How the images are read.
    """

    def __init__(
        self,
        items: Sequence[bytes],
        names: Sequence[str],
        options: ReadOptions = DEFAULT_READ_OPTIONS,
    ) -> None:
        assert len(items) == len(names), "an image has one name"
        self.items = items
        self.names = names
        self.options = options

    def __len__(self) -> int:
        return len(self.items)

    def replace_options(self, options: ReadOptions) -> Self:
        """Return the source of the same images, read with other options."""
        other = copy(self)
        other.options = options
        return other

    def get_name(self, row: int) -> str:
        """Return the name of a row's image."""
        return self.names[row]

    def open(self, row: int) -> LazyImage:
        """Return the image of a row.

        Raises:
            DataError: The image cannot be read.
        """
        file = create_temporary_file(self.items[row])
        try:
            image = open_image(file.path, options=self.options)
        except BaseException:
            file.close()
            raise
        weakref.finalize(image, file.close)  # a JPEG may be decoded from its file later
        return image


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
