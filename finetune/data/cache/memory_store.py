"""Store of arrays in the memory of this process, for a disk that cannot be written."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.cache.array_store import NOT_STORED, ArrayLocation, StoreEntry
from finetune.data.cache.file_stamp import FileStamp
from finetune.types import Reporter


class MemoryStore:
    """Store with the interface of ``ArrayStore``, which lasts as long as the object.

    Args:
        folder: Folder that a store on disk would have; nothing is written there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._locations: dict[FileStamp, ArrayLocation] = {}
        self._chunks: list[NDArray[np.uint8]] = []
        self._end = 0

    def find(self, files: Sequence[FileStamp]) -> NDArray[np.int64]:
        """Return the ``ArrayLocation`` of each file, int64, shape (N, 5)."""
        found = [self._locations.get(file, NOT_STORED) for file in files]
        return np.array(found, np.int64).reshape(len(files), len(ArrayLocation._fields))

    def append(self, arrays: Iterable[tuple[FileStamp, StoreEntry]]) -> Iterator[FileStamp]:
        """Append arrays and yield the file of each, which ``find`` returns from then on."""
        for file, entry in arrays:
            content = np.ascontiguousarray(entry.array).reshape(-1).view(np.uint8)
            rows, columns = entry.array.shape[:2]
            self._locations[file] = ArrayLocation(
                self._end, rows, columns, entry.full_rows, entry.full_columns
            )
            self._chunks.append(content.copy())  # not a view of the batch that it is part of
            self._end += len(content)
            yield file

    def reset_if_mostly_stale(self) -> None:
        """Do nothing: no array is stale before the process ends."""

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return self._end

    @contextmanager
    def lock_for_filling(self, reporter: Reporter | None = None) -> Iterator[None]:
        """Do nothing: no other process fills the store."""
        del reporter
        yield

    def memory_map(self) -> tuple[NDArray[Any], int]:
        """Return all bytes, uint8, and 0 in place of an inode."""
        if len(self._chunks) != 1:
            self._chunks = [np.concatenate([np.empty(0, np.uint8), *self._chunks])]
        return self._chunks[0], 0


class MemoryStores:
    """Stores in memory by folder, kept for those who open the same folder again.

    Args:
        limit_bytes: Size of all of them; beyond it those that were used least recently are
            dropped, and last as long as their other users.
    """

    def __init__(self, limit_bytes: int = 2**30) -> None:
        self._limit_bytes = limit_bytes
        self._stores: dict[Path, MemoryStore] = {}  # the most recently used is the last

    def find(self, folder: Path) -> MemoryStore | None:
        """Return the store of a folder; None if it is not kept."""
        store = self._stores.get(folder)
        if store is not None:
            self.keep(store)
        return store

    def keep(self, store: MemoryStore) -> None:
        """Keep a store, with what was appended to it, if it fits."""
        self._stores.pop(store.folder, None)
        self._stores[store.folder] = store
        excess = sum(kept.num_bytes for kept in self._stores.values()) - self._limit_bytes
        for folder, kept in list(self._stores.items()):
            if excess <= 0:
                break
            excess -= kept.num_bytes
            del self._stores[folder]
