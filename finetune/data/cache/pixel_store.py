"""Store of decoded images, and the source of a dataset that reads it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.cache.array_store import ArrayStore, StoreEntry
from finetune.data.images.lazy_image import LazyImage
from finetune.data.images.multichannel import build_stored_image
from finetune.data.images.source import PathSource
from finetune.errors import StorageError
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions

_REDECODE_HINT = "so the run's images are no longer cached. They are decoded again on fit --resume."


class PixelStore(ArrayStore):
    """Store of decoded images, uint8 or uint16, shape (H, W, C) each.

    Args:
        root: Folder of all stores.
        tag: Name of the decoding, such as "short-379"; part of the store's folder name.
        owner: Owner of the images, such as the folder of a data set.
        options: Number of channels C of an image, and their bits.

    Raises:
        StorageError: The folder cannot be created or written.
    """

    def __init__(
        self, root: Path, *, tag: str, owner: str, options: ReadOptions = DEFAULT_READ_OPTIONS
    ) -> None:
        item_bytes = options.pixel_bytes
        super().__init__(root, tag=tag, owner=owner, item_bytes=item_bytes, content="pixels")
        self.num_channels = options.num_channels
        self.dtype = np.dtype(np.uint8 if options.bit_depth == 8 else np.uint16)


class StoredSource(PathSource):
    """Source of the images in a store.

    Args:
        store: Store of the images.
        paths: Image files, shape (N,).
        locations: ``ArrayLocation`` of each image, int64, shape (N, 5).
    """

    def __init__(
        self, store: PixelStore, paths: Sequence[Path], locations: NDArray[np.int64]
    ) -> None:
        super().__init__(paths)
        self.locations = locations
        self.store = store
        # mapped at once, because another run may replace the file; this map keeps the old one
        self._pixels: NDArray[np.uint8] | None
        self._pixels, self._inode = self._map_store()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # an unpickled copy maps the file itself

    def open(self, row: int) -> LazyImage:
        """Return the image of a row; its pixels are read from disk on access.

        Raises:
            StorageError: The store was removed or replaced before an unpickled copy mapped it.
        """
        if self._pixels is None:
            self._pixels, inode = self._map_store()
            if inode != self._inode:
                raise StorageError(
                    f"Another run has replaced {self.store.folder}, {_REDECODE_HINT}"
                )
        start, height, width, full_height, full_width = self.locations[row].tolist()
        end = start + height * width * self.store.item_bytes
        samples = self._pixels[start:end].view(self.store.dtype)
        pixels = samples.reshape(height, width, self.store.num_channels)
        return build_stored_image(pixels, height=full_height, width=full_width)

    def _map_store(self) -> tuple[NDArray[np.uint8], int]:
        try:
            return self.store.memory_map()
        except FileNotFoundError as error:
            raise StorageError(f"{self.store.folder} was removed, {_REDECODE_HINT}") from error


def build_lazy_image(entry: StoreEntry) -> LazyImage:
    """Return the image of a store entry."""
    return build_stored_image(entry.array, height=entry.full_rows, width=entry.full_columns)
