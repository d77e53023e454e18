"""Decoded images on disk, and pictures made from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.cache.array_store import ArrayStore, StoreEntry
from finetune.data.images.lazy_image import ArrayImage, LazyImage
from finetune.data.images.source import PathSource
from finetune.errors import StorageError

_REDECODE_HINT = (
    "which held the run's pixels. They are decoded again when the run goes on with --resume."
)


class PixelStore(ArrayStore):
    """One folder of decoded images, each uint8 of shape (H, W, 3).

    Args:
        root: Folder of all stores.
        form: What is stored of an image, in a word, as in "short-379".
        owner: What the images belong to, as the folder of a data set; it gives the store its name.

    Raises:
        StorageError: The folder cannot be made or written.
    """

    def __init__(self, root: Path, *, tag: str, owner: str) -> None:
        super().__init__(root, tag=tag, owner=owner, item_bytes=3, content="pixels")


class StoredSource(PathSource):
    """Pictures in a store.

    Args:
        store: Holds them.
        paths: Image files, shape (N,).
        locations: Where each lies, shape (N, 5).
    """

    def __init__(
        self, store: PixelStore, paths: Sequence[Path], locations: NDArray[np.int64]
    ) -> None:
        super().__init__(paths)
        self.locations = locations
        self.store = store
        # at once, since another run may begin the file anew; this one keeps the old
        self._pixels: NDArray[np.uint8] | None
        self._pixels, self._inode = self._map_store()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # a copy maps the file by itself

    def open(self, row: int) -> LazyImage:
        """Return the picture of a row; its pixels are read from the disk when they are used.

        Raises:
            StorageError: In a copy, that the store was removed or begun anew.
        """
        if self._pixels is None:
            self._pixels, file_number = self._map_store()
            if file_number != self._inode:
                raise StorageError(
                    f"Another run has begun {self.store.folder} anew, {_REDECODE_HINT}"
                )
        start, height, width, full_height, full_width = self.locations[row].tolist()
        pixels = self._pixels[start : start + height * width * 3].reshape(height, width, 3)
        return ArrayImage(pixels, height=full_height, width=full_width)

    def _map_store(self) -> tuple[NDArray[np.uint8], int]:
        try:
            return self.store.memory_map()
        except FileNotFoundError as error:
            raise StorageError(f"{self.store.folder} is gone, {_REDECODE_HINT}") from error


def build_lazy_image(entry: StoreEntry) -> LazyImage:
    """Return the picture of an image that is ready to be stored."""
    return ArrayImage(entry.array, height=entry.full_rows, width=entry.full_columns)
