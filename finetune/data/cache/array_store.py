"""Append-only store on disk of arrays computed from image files, memory-mapped by all processes.

A store is a folder with ``arrays.bin`` (consecutive arrays in C order), ``index.sqlite`` (location
and shape of each file's array, with the stamp of the file) and two lock files. Arrays are synced
before the index lists them, so that a store whose writer was killed is consistent with its index
and can be filled further.
"""

import fcntl
import hashlib
import os
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.data.cache.eviction import (
    ARRAYS_FILE,
    FILL_LOCK_FILE,
    INDEX_FILE,
    NEW_ARRAYS_FILE,
    acquire_shared_lock,
    translate_cache_errors,
)
from finetune.data.cache.file_stamp import FileStamp
from finetune.types import Reporter

_FORMAT_VERSION = 3
"""Version of the content and layout of stores; those of other versions are unused until evicted."""

SYNC_INTERVAL = 1000
"""Arrays between two syncs to disk."""

_CREATE_TABLE_SQL = """CREATE TABLE IF NOT EXISTS arrays (
    path TEXT PRIMARY KEY, bytes INTEGER, ctime_ns INTEGER,
    start INTEGER, rows INTEGER, columns INTEGER, full_rows INTEGER, full_columns INTEGER
) WITHOUT ROWID"""


class ArrayLocation(NamedTuple):
    """Location of an array in ``arrays.bin``, and the size of the image that it was computed from.

    Attributes:
        start: Offset in bytes; -1 if the array is not stored.
        rows: First dimension of the array.
        columns: Second dimension of the array.
        full_rows: Height of the full image.
        full_columns: Width of the full image.
    """

    start: int
    rows: int
    columns: int
    full_rows: int
    full_columns: int


NOT_STORED = ArrayLocation(-1, 0, 0, 0, 0)
"""Location of an array that is not stored."""


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """Array computed from a file, ready to be stored.

    Attributes:
        array: Array, shape (rows, columns, …); further axes are the same in all arrays of a store.
        full_rows: Height of the full image.
        full_columns: Width of the full image.
    """

    array: NDArray[Any]
    full_rows: int = 0
    full_columns: int = 0


class ArrayStore:
    """Store of arrays that were computed from files in one way.

    Args:
        root: Folder of all stores.
        tag: Name of the computation, such as "short-379"; part of the store's folder name.
        owner: Owner of the files, such as the folder of a data set; hashed into the folder name.
        item_bytes: Size in bytes of the element in a row and a column.
        content: Noun for the arrays in messages, such as "pixels".

    Raises:
        StorageError: The folder cannot be created or written.
    """

    def __init__(self, root: Path, *, tag: str, owner: str, item_bytes: int, content: str) -> None:
        self.folder = get_store_folder(root, tag=tag, owner=owner)
        self.item_bytes = item_bytes
        self.content = content
        with translate_cache_errors(self.folder):
            weakref.finalize(self, os.close, acquire_shared_lock(self.folder))
            self._arrays_path.touch()  # the time of the last use, which eviction sorts by

    def find(self, files: Sequence[FileStamp]) -> NDArray[np.int64]:
        """Return the ``ArrayLocation`` of each file, int64, shape (N, 5).

        It is ``NOT_STORED`` for files that are absent or have changed, and for all files if the
        index is damaged; a damaged index is deleted.
        """
        with translate_cache_errors(self.folder):
            try:
                return self._find(files)
            except sqlite3.DatabaseError as error:
                # subclasses are errors of the disk, not of the content
                if type(error) is not sqlite3.DatabaseError:
                    raise
                (self.folder / INDEX_FILE).unlink()
                return self._find(files)

    def reset_if_mostly_stale(self) -> None:
        """Clear the index if over half of the stored bytes are no longer referenced by it."""
        with translate_cache_errors(self.folder), suppress(sqlite3.DatabaseError):
            size = f"rows * columns * {self.item_bytes}"
            with self._open_index() as index, index:
                ends = index.execute(f"SELECT max(start + {size}), sum({size}) FROM arrays")
                end, used = ends.fetchone()
                if end is not None and 2 * used < end:
                    index.execute("DELETE FROM arrays")

    def _find(self, files: Sequence[FileStamp]) -> NDArray[np.int64]:
        locations = np.empty((len(files), len(ArrayLocation._fields)), np.int64)
        end = self._arrays_path.stat().st_size
        with self._open_index() as index:
            for number, file in enumerate(files):
                row = index.execute("SELECT * FROM arrays WHERE path = ?", file[:1]).fetchone()
                location = NOT_STORED if row is None or file != row[:3] else ArrayLocation(*row[3:])
                last = location.start + location.rows * location.columns * self.item_bytes
                locations[number] = NOT_STORED if last > end else location  # truncated file
        return locations

    def append(self, arrays: Iterable[tuple[FileStamp, StoreEntry]]) -> Iterator[FileStamp]:
        """Append arrays and yield the file of each.

        ``find`` returns the arrays after they are synced: every 1000 arrays, and when the iterator
        ends or is closed.

        Raises:
            StorageError: The disk is full or fails; arrays that were synced before stay stored, and
                the space of the others is free again.
        """
        with (
            translate_cache_errors(self.folder),
            self._open_index() as index,
            _open_for_append(self._arrays_path, index, self.item_bytes) as stream,
            _truncate_on_error(stream, index, self.item_bytes),
        ):
            pending: list[tuple[FileStamp, ArrayLocation]] = []
            try:
                for file, entry in arrays:
                    rows, columns = entry.array.shape[:2]
                    location = ArrayLocation(
                        stream.tell(), rows, columns, entry.full_rows, entry.full_columns
                    )
                    assert entry.array.nbytes == rows * columns * self.item_bytes
                    content = np.ascontiguousarray(entry.array).reshape(-1).view(np.uint8)
                    _write(stream, content.data)
                    pending.append((file, location))
                    if len(pending) >= SYNC_INTERVAL:
                        _sync(stream.fileno(), index, pending)
                    yield file
            finally:
                _sync(stream.fileno(), index, pending)

    @contextmanager
    def lock_for_filling(self, reporter: Reporter | None = None) -> Iterator[None]:
        """Hold the lock for filling the store; wait while another process holds it."""
        with translate_cache_errors(self.folder):
            lock = (self.folder / FILL_LOCK_FILE).open("w")
        with lock:
            with translate_cache_errors(self.folder):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    (reporter or Reporter()).note(
                        f"Another process is writing the {self.content} in {self.folder}; waiting "
                        f"for it."
                    )
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def measure(self) -> int:
        """Return the number of bytes that the stored arrays take."""
        with translate_cache_errors(self.folder):
            return self._arrays_path.stat().st_size

    def truncate(self, num_bytes: int) -> None:
        """Discard what was appended since ``measure`` returned a number of bytes.

        While the lock for filling is held, no other process has found these arrays.
        """
        with translate_cache_errors(self.folder):
            os.truncate(self._arrays_path, min(num_bytes, self.measure()))

    def memory_map(self) -> tuple[NDArray[np.uint8], int]:
        """Return a memory map of all bytes, uint8, and the inode of the file.

        Raises:
            FileNotFoundError: The store was removed.
        """
        with self._arrays_path.open("rb") as stream:
            return np.memmap(stream, np.uint8, mode="r"), os.fstat(stream.fileno()).st_ino

    @property
    def _arrays_path(self) -> Path:
        return self.folder / ARRAYS_FILE

    @contextmanager
    def _open_index(self) -> Iterator[sqlite3.Connection]:
        index = sqlite3.connect(self.folder / INDEX_FILE, timeout=60)
        try:
            index.execute(_CREATE_TABLE_SQL)
            yield index
        finally:
            index.close()


def get_store_folder(root: Path, *, tag: str, owner: str) -> Path:
    """Return the folder of the store of a tag and an owner, whether it exists or not."""
    digest = hashlib.sha256(f"{_FORMAT_VERSION}\0{tag}\0{owner}".encode(errors="surrogateescape"))
    return root / f"{tag}-{digest.hexdigest()[:16]}"


@contextmanager
def _truncate_on_error(
    stream: FileIO, index: sqlite3.Connection, item_bytes: int
) -> Iterator[None]:
    """Truncate the file of arrays behind the indexed ones if the block fails."""
    try:
        yield
    except Exception:
        with suppress(OSError, sqlite3.Error):
            stream.truncate(_find_end(index, item_bytes) or 0)
        raise


def _write(stream: FileIO, content: memoryview) -> None:
    """Write all bytes without a buffer, which would be written later, after a failure."""
    while content:
        content = content[stream.write(content) :]


def _find_end(index: sqlite3.Connection, item_bytes: int) -> int | None:
    """Return the end of the last indexed array; None without arrays."""
    ends = index.execute(f"SELECT max(start + rows * columns * {item_bytes}) FROM arrays")
    end: int | None = ends.fetchone()[0]
    return end


def _open_for_append(path: Path, index: sqlite3.Connection, item_bytes: int) -> FileIO:
    """Return the file of arrays, truncated at the end of the indexed arrays, for appending."""
    with index:  # arrays lost by truncation must not be found once the file has grown again
        delete = f"DELETE FROM arrays WHERE start + rows * columns * {item_bytes} > ?"
        index.execute(delete, (path.stat().st_size,))
    end = _find_end(index, item_bytes)
    if end is None:  # a new file: processes that map the old one would crash if it shrank
        new_path = path.with_name(NEW_ARRAYS_FILE)
        new_path.touch()
        new_path.replace(path)
    arrays = FileIO(path, "r+b")
    arrays.truncate(end or 0)  # arrays that a killed process wrote but did not index
    arrays.seek(0, os.SEEK_END)
    return arrays


def _sync(
    descriptor: int, index: sqlite3.Connection, pending: list[tuple[FileStamp, ArrayLocation]]
) -> None:
    """Sync the arrays to disk, then add them to the index."""
    os.fsync(descriptor)
    with index:
        index.executemany(
            "INSERT OR REPLACE INTO arrays VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(*file, *location) for file, location in pending],
        )
    pending.clear()
