"""Image of a stream: a file, or the content of one, or the reason why there is none."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol, Self

from finetune.data.images.decode import OnValues, open_image, report_values
from finetune.data.images.lazy_image import LazyImage
from finetune.data.images.source import MemorySource
from finetune.data.layouts.split_names import parse_split_name
from finetune.errors import DataError
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions


@dataclass(frozen=True, slots=True)
class StreamImage:
    """Image of a stream.

    Attributes:
        name: Name in predictions, such as the path of a file.
        path: Image file; None for another image.
        data: Content of an image file in memory; None for another image.
        reason: Why the image cannot be read, where that is known; its path and data are None.
        container: Number of the file, from 0, that holds the image beside others; None for a
            file of its own.
        is_io_error: Whether this stands for all or the rest of a container that could not be
            read because the disk, the network or a permission failed, not for its content:
            later it may have other images.
        root: Beginning of the name, a folder or tar file that holds the folders of the classes;
            None for a path that was listed, whose class folder is not known.
    """

    name: str
    path: Path | None = None
    data: bytes | None = None
    reason: str | None = None
    container: int | None = None
    is_io_error: bool = False
    root: str | None = None

    @property
    def folder_name(self) -> str:
        """Name of the class folder: the first one below the root that is no folder of a split.

        It is that of the folder that the image lies in if the root is unknown, or has no folders.
        """
        path = PurePath(self.name)
        if self.root is None:
            return path.parent.name
        *folders, _ = path.relative_to(self.root).parts
        while len(folders) > 1 and parse_split_name(folders[0]) is not None:
            del folders[0]
        return folders[0] if folders else path.parent.name


class ImageStream(Protocol):
    """Images in a stable order, of which few are in memory at once.

    Attributes:
        description: What the user gave, for messages.
        num_containers: Number of files that hold several images each; 0 for files of images.
    """

    description: str
    num_containers: int

    def iterate(self, selects: Callable[[int], bool] | None = None) -> Iterator[StreamImage]:
        """Yield the images.

        Args:
            selects: Whether to read a container, by its number; None reads all.

        Raises:
            DataError: The stream cannot be read, or holds no image.
        """

    def count(self) -> int | None:
        """Return the number of images if it is found at once, else None."""

    def compute_fingerprint(self) -> str:
        """Return a digest of the list of images, which differs if one is added or removed.

        Raises:
            DataError: The stream can be read only once.
        """


class StreamSource:
    """Source of some images of a stream.

    Args:
        images: Images, shape (N,).
        on_values: See ``OnValues``.
        options: How images are read.
    """

    def __init__(
        self,
        images: Sequence[StreamImage],
        *,
        on_values: OnValues | None = None,
        options: ReadOptions = DEFAULT_READ_OPTIONS,
    ) -> None:
        self.images = images
        self.on_values = on_values
        self.options = options

    def __len__(self) -> int:
        return len(self.images)

    def replace_options(self, options: ReadOptions) -> Self:
        """Return the source of the same images, read with other options."""
        other = copy(self)
        other.options = options
        return other

    def get_name(self, row: int) -> str:
        """Return the name of a row's image."""
        return self.images[row].name

    def open(self, row: int) -> LazyImage:
        """Return the image of a row.

        Raises:
            DataError: The image cannot be read.
        """
        image = self.images[row]
        if image.reason is not None:
            raise DataError(image.reason)
        if image.data is not None:
            opened = MemorySource([image.data], [image.name], self.options).open(0)
        else:
            assert image.path is not None, "an image without a reason is in a file or in memory"
            opened = open_image(image.path, options=self.options)
        if self.on_values is not None:
            report_values(opened, Path(image.name), self.options, self.on_values)
        return opened


class ListDigest:
    """Digest of a list of texts, which depends on their order and number."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.num_texts = 0

    def add(self, *texts: object) -> None:
        """Add an entry of one or several texts to the list."""
        for text in texts:
            self._hash.update(str(text).encode(errors="surrogateescape") + b"\0")
        self._hash.update(b"\n")
        self.num_texts += 1

    def compute(self) -> str:
        """Return the digest, hexadecimal."""
        return self._hash.hexdigest()
