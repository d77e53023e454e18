"""Store on disk that continues in memory when its disk cannot be written."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.cache.array_store import (
    NOT_STORED,
    SYNC_INTERVAL,
    ArrayLocation,
    ArrayStore,
    StoreEntry,
    get_store_folder,
)
from finetune.data.cache.file_stamp import FileStamp
from finetune.data.cache.memory_store import MemoryStore, MemoryStores
from finetune.errors import StorageError
from finetune.types import Reporter


class FallbackStore:
    """Store with the interface of ``ArrayStore`` for small arrays, such as features.

    When the disk fails, what was found or appended is copied into memory, where it stays as long as
    the object, or as ``memory_stores`` keep it.

    Args:
        root: Folder of all stores.
        tag: Name of the computation, part of the store's folder name.
        owner: Owner of the files, such as the folder of a data set.
        item_bytes: Size in bytes of the element in a row and a column.
        content: Noun for the arrays in messages.
        on_failure: Called with the error that makes the disk unusable; it may raise another one
            where the arrays are too large for the memory.
        memory_stores: Stores that replace those on disks that have failed before; None for none.
    """

    def __init__(
        self,
        root: Path,
        *,
        tag: str,
        owner: str,
        item_bytes: int,
        content: str,
        on_failure: Callable[[StorageError], None],
        memory_stores: MemoryStores | None = None,
    ) -> None:
        self.folder = get_store_folder(root, tag=tag, owner=owner)
        self._item_bytes = item_bytes
        self._on_failure = on_failure
        self._in_use: set[FileStamp] = set()
        """Files whose arrays the caller may read."""
        self._memory_stores = memory_stores or MemoryStores(limit_bytes=0)
        kept = self._memory_stores.find(self.folder)
        self._store: ArrayStore | MemoryStore = kept or MemoryStore(self.folder)
        if kept is not None:
            return
        try:
            self._store = ArrayStore(
                root, tag=tag, owner=owner, item_bytes=item_bytes, content=content
            )
        except StorageError as error:
            on_failure(error)

    def find(self, files: Sequence[FileStamp]) -> NDArray[np.int64]:
        """Return the ``ArrayLocation`` of each file, int64, shape (N, 5)."""
        try:
            locations = self._store.find(files)
        except StorageError as error:
            self._leave_disk(error)
            locations = self._store.find(files)
        if isinstance(self._store, ArrayStore):
            rows = np.flatnonzero(locations[:, 0] != NOT_STORED.start)
            self._in_use.update(files[row] for row in rows.tolist())
        return locations

    def reset_if_mostly_stale(self) -> None:
        """Clear the store if over half of its bytes are unused."""
        try:
            self._store.reset_if_mostly_stale()
        except StorageError as error:
            self._leave_disk(error)

    def append(self, arrays: Iterable[tuple[FileStamp, StoreEntry]]) -> Iterator[FileStamp]:
        """Append arrays and yield the file of each; ``find`` returns all in the end."""
        remaining = iter(arrays)
        if isinstance(self._store, ArrayStore):
            # more than are not synced yet when the disk fails
            recent: deque[tuple[FileStamp, StoreEntry]] = deque(maxlen=SYNC_INTERVAL + 1)
            yielded: set[FileStamp] = set()
            try:
                for file in self._store.append(_record(remaining, recent)):
                    self._in_use.add(file)
                    yielded.add(file)
                    yield file
                return
            except StorageError as error:
                self._leave_disk(error, recent=recent)
            for file, _ in recent:
                if file not in yielded:
                    yield file
        yield from self._store.append(remaining)
        if isinstance(self._store, MemoryStore):
            self._memory_stores.keep(self._store)

    @contextmanager
    def lock_for_filling(self, reporter: Reporter | None = None) -> Iterator[None]:
        """Hold the lock for filling the store on disk; wait while another process holds it."""
        with ExitStack() as locks:
            try:
                locks.enter_context(self._store.lock_for_filling(reporter))
            except StorageError as error:
                self._leave_disk(error)
            yield

    def memory_map(self) -> tuple[NDArray[np.uint8], int]:
        """Return all bytes, uint8, and the inode of the file, or 0."""
        return self._store.memory_map()

    def _leave_disk(
        self, error: StorageError, recent: Iterable[tuple[FileStamp, StoreEntry]] = ()
    ) -> None:
        """Continue in memory, with the arrays in use and those appended last.

        Raises:
            StorageError: The arrays in use can no longer be read.
        """
        disk, memory = self._store, MemoryStore(self.folder)
        assert isinstance(disk, ArrayStore), "the memory does not fail"
        self._on_failure(error)
        in_memory = dict(recent)
        files = [file for file in self._in_use if file not in in_memory]
        entries = list(in_memory.items())
        if files:
            content = disk.memory_map()[0]
            for file, row in zip(files, disk.find(files).tolist(), strict=True):
                entries.append((file, self._read_entry(content, ArrayLocation(*row), error)))
        for _ in memory.append(entries):
            pass
        self._store = memory
        self._memory_stores.keep(memory)

    def _read_entry(
        self, content: NDArray[np.uint8], location: ArrayLocation, error: StorageError
    ) -> StoreEntry:
        """Return a stored array as bytes of its items."""
        if location == NOT_STORED:
            raise error
        end = location.start + location.rows * location.columns * self._item_bytes
        items = content[location.start : end].reshape(location.rows, location.columns, -1)
        return StoreEntry(items, location.full_rows, location.full_columns)


def _record(
    arrays: Iterable[tuple[FileStamp, StoreEntry]],
    recent: deque[tuple[FileStamp, StoreEntry]],
) -> Iterator[tuple[FileStamp, StoreEntry]]:
    """Yield the arrays, and keep the last ones."""
    for item in arrays:
        recent.append(item)
        yield item
