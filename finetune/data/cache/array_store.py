"""What was made of image files, on disk: packed arrays that all processes map, and their index.

A store is a folder with ``arrays.bin`` (one array after the other, in C order), ``index.sqlite``
(which file's array lies where, and of what size and time the file was when it was made) and two
lock files. Arrays are only ever appended; the index is written after them, so that a store that was
being filled when its process was killed holds what the index says, and goes on from there.
"""

import fcntl
import hashlib
import os
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.data.cache.eviction import CACHE_REMEDY, acquire_shared_lock
from finetune.data.cache.file_stamp import FileStamp
from finetune.system.files import translate_disk_errors
from finetune.types import Reporter

_FORMAT_VERSION = 2
"""Raised when what is stored, or how, changes; older stores are then left to be cleared."""

_CREATE_TABLE_SQL = """CREATE TABLE IF NOT EXISTS arrays (
    path TEXT PRIMARY KEY, bytes INTEGER, ctime_ns INTEGER,
    start INTEGER, rows INTEGER, columns INTEGER, full_rows INTEGER, full_columns INTEGER
) WITHOUT ROWID"""


class ArrayLocation(NamedTuple):
    """Where an array lies in ``arrays.bin``, in bytes, and the shape of what it was made from."""

    start: int
    rows: int
    columns: int
    full_rows: int
    full_columns: int


NOT_STORED = ArrayLocation(-1, 0, 0, 0, 0)
"""The place of an array that is not stored."""


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """What was made of a file and is ready to be stored.

    Attributes:
        array: Shape (rows, columns, …); behind the first two axes all of a store have one shape.
        full_rows: Of what it was made from.
        full_columns: Of what it was made from.
    """

    array: NDArray[Any]
    full_rows: int = 0
    full_columns: int = 0


class ArrayStore:
    """One folder of arrays, all of the same form.

    Args:
        root: Folder of all stores.
        form: What is stored of a file, in a word, as in "short-379".
        owner: What the files belong to, as the folder of a data set; it gives the store its name.
        item_bytes: Of what stands in a row and a column.
        content: What the arrays are, in a word, for messages.

    Raises:
        StorageError: The folder cannot be made or written.
    """

    def __init__(self, root: Path, *, tag: str, owner: str, item_bytes: int, content: str) -> None:
        self.folder = get_store_folder(root, tag=tag, owner=owner)
        self.item_bytes = item_bytes
        self.content = content
        with translate_disk_errors(self.folder, CACHE_REMEDY):
            weakref.finalize(self, os.close, acquire_shared_lock(self.folder))
            self._arrays_path.touch()  # the last use, by which old stores are cleared

    def find(self, files: Sequence[FileStamp]) -> NDArray[np.int64]:
        """Return the ``ArrayLocation`` of each file, shape (N, 5).

        It is ``NOT_STORED`` for files that are absent or have changed since, and for all where the
        index is damaged, which is begun anew.
        """
        with translate_disk_errors(self.folder, CACHE_REMEDY):
            try:
                return self._find(files)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # the disk, not what is in the file
                    raise
                (self.folder / "index.sqlite").unlink()
                return self._find(files)

    def reset_if_mostly_stale(self) -> None:
        """Begin anew where over half of the arrays are of files that have changed since."""
        with translate_disk_errors(self.folder, CACHE_REMEDY), suppress(sqlite3.DatabaseError):
            size = f"rows * columns * {self.item_bytes}"
            with self._open_index() as index, index:
                ends = index.execute(f"SELECT max(start + {size}), sum({size}) FROM arrays")
                end, used = ends.fetchone()
                if end is not None and 2 * used < end:
                    index.execute("DELETE FROM arrays")

    def _find(self, files: Sequence[FileStamp]) -> NDArray[np.int64]:
        places = np.empty((len(files), len(ArrayLocation._fields)), np.int64)
        end = self._arrays_path.stat().st_size
        with self._open_index() as index:
            for number, file in enumerate(files):
                row = index.execute("SELECT * FROM arrays WHERE path = ?", file[:1]).fetchone()
                found = NOT_STORED if row is None or file != row[:3] else ArrayLocation(*row[3:])
                lost = found.start + found.rows * found.columns * self.item_bytes > end
                places[number] = NOT_STORED if lost else found
        return places

    def append(self, arrays: Iterable[tuple[FileStamp, StoreEntry]]) -> Iterator[FileStamp]:
        """Store arrays and yield the file of each; they are found once all, or a part, is synced.

        Raises:
            StorageError: The disk is full or fails; what was synced before stays.
        """
        with (
            translate_disk_errors(self.folder, CACHE_REMEDY),
            self._open_index() as index,
            _open_for_append(self._arrays_path, index, self.item_bytes) as stream,
        ):
            waiting: list[tuple[FileStamp, ArrayLocation]] = []
            try:
                for file, stored in arrays:
                    rows, columns = stored.array.shape[:2]
                    place = ArrayLocation(
                        stream.tell(), rows, columns, stored.full_rows, stored.full_columns
                    )
                    assert stored.array.nbytes == rows * columns * self.item_bytes
                    stream.write(np.ascontiguousarray(stored.array).data)
                    waiting.append((file, place))
                    if len(waiting) >= 1000:
                        _sync(stream.fileno(), index, waiting)
                    yield file
            finally:
                stream.flush()
                _sync(stream.fileno(), index, waiting)

    @contextmanager
    def lock_for_filling(self, reporter: Reporter | None = None) -> Iterator[None]:
        """Keep every other process from filling the store, and wait for one that does."""
        with (self.folder / "filling.lock").open("w") as lock:
            with translate_disk_errors(self.folder, CACHE_REMEDY):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    (reporter or Reporter()).note(
                        f"Another process makes the {self.content} in {self.folder}: waiting for it."
                    )
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def memory_map(self) -> tuple[NDArray[np.uint8], int]:
        """Return all bytes, read from the disk when they are used, and the number of their file.

        Raises:
            FileNotFoundError: Somebody has removed the store.
        """
        with self._arrays_path.open("rb") as stream:
            return np.memmap(stream, np.uint8, mode="r"), os.fstat(stream.fileno()).st_ino

    @property
    def _arrays_path(self) -> Path:
        return self.folder / "arrays.bin"

    @contextmanager
    def _open_index(self) -> Iterator[sqlite3.Connection]:
        index = sqlite3.connect(self.folder / "index.sqlite", timeout=60)
        try:
            index.execute(_CREATE_TABLE_SQL)
            yield index
        finally:
            index.close()


def get_store_folder(root: Path, *, tag: str, owner: str) -> Path:
    """Return where the store of a form and an owner lies, whether it exists or not."""
    digest = hashlib.sha256(f"{_FORMAT_VERSION}\0{tag}\0{owner}".encode(errors="surrogateescape"))
    return root / f"{tag}-{digest.hexdigest()[:16]}"


def _open_for_append(path: Path, index: sqlite3.Connection, item_bytes: int) -> BinaryIO:
    """Return the file of arrays at the end of what the index knows, which then is all there is."""
    with index:  # what a shortened file has lost must not be found again once it has grown
        lost = f"DELETE FROM arrays WHERE start + rows * columns * {item_bytes} > ?"
        index.execute(lost, (path.stat().st_size,))
    ends = index.execute(f"SELECT max(start + rows * columns * {item_bytes}) FROM arrays")
    end = ends.fetchone()[0]
    if end is None:  # a new file: others may read the old one, and do not bear that it shrinks
        fresh = path.with_name("arrays.new")
        fresh.touch()
        fresh.replace(path)
    arrays = path.open("r+b")
    arrays.truncate(end or 0)  # what a killed process had written behind the index
    arrays.seek(0, os.SEEK_END)
    return arrays


def _sync(
    descriptor: int, index: sqlite3.Connection, pending: list[tuple[FileStamp, ArrayLocation]]
) -> None:
    """Make the arrays safe on disk, and then known."""
    os.fsync(descriptor)
    with index:
        index.executemany(
            "INSERT OR REPLACE INTO arrays VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(*file, *place) for file, place in pending],
        )
    pending.clear()
