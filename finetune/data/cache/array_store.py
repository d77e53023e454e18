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

from finetune.data.cache.eviction import REMEDY, shared_lock
from finetune.data.cache.file_stamp import FileState
from finetune.system.files import disk_errors_explained
from finetune.types import Reporter

_FORMAT = 2
"""Raised when what is stored, or how, changes; older stores are then left to be cleared."""

_TABLE = """CREATE TABLE IF NOT EXISTS arrays (
    path TEXT PRIMARY KEY, bytes INTEGER, ctime_ns INTEGER,
    start INTEGER, rows INTEGER, columns INTEGER, full_rows INTEGER, full_columns INTEGER
) WITHOUT ROWID"""


class Place(NamedTuple):
    """Where an array lies in ``arrays.bin``, in bytes, and the shape of what it was made from."""

    start: int
    rows: int
    columns: int
    full_rows: int
    full_columns: int


NOWHERE = Place(-1, 0, 0, 0, 0)
"""The place of an array that is not stored."""


@dataclass(frozen=True, slots=True)
class Stored:
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
        holds: What the arrays are, in a word, for messages.

    Raises:
        StorageError: The folder cannot be made or written.
    """

    def __init__(self, root: Path, *, form: str, owner: str, item_bytes: int, holds: str) -> None:
        self.folder = store_folder(root, form=form, owner=owner)
        self.item_bytes = item_bytes
        self.holds = holds
        with disk_errors_explained(self.folder, REMEDY):
            weakref.finalize(self, os.close, shared_lock(self.folder))
            self._file.touch()  # the last use, by which old stores are cleared

    def find(self, files: Sequence[FileState]) -> NDArray[np.int64]:
        """Return the ``Place`` of each file, shape (N, 5).

        It is ``NOWHERE`` for files that are absent or have changed since, and for all where the
        index is damaged, which is begun anew.
        """
        with disk_errors_explained(self.folder, REMEDY):
            try:
                return self._find(files)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # the disk, not what is in the file
                    raise
                (self.folder / "index.sqlite").unlink()
                return self._find(files)

    def forget_waste(self) -> None:
        """Begin anew where over half of the arrays are of files that have changed since."""
        with disk_errors_explained(self.folder, REMEDY), suppress(sqlite3.DatabaseError):
            size = f"rows * columns * {self.item_bytes}"
            with self._index() as index, index:
                ends = index.execute(f"SELECT max(start + {size}), sum({size}) FROM arrays")
                end, used = ends.fetchone()
                if end is not None and 2 * used < end:
                    index.execute("DELETE FROM arrays")

    def _find(self, files: Sequence[FileState]) -> NDArray[np.int64]:
        places = np.empty((len(files), len(Place._fields)), np.int64)
        end = self._file.stat().st_size
        with self._index() as index:
            for number, file in enumerate(files):
                row = index.execute("SELECT * FROM arrays WHERE path = ?", file[:1]).fetchone()
                found = NOWHERE if row is None or file != row[:3] else Place(*row[3:])
                lost = found.start + found.rows * found.columns * self.item_bytes > end
                places[number] = NOWHERE if lost else found
        return places

    def append(self, arrays: Iterable[tuple[FileState, Stored]]) -> Iterator[FileState]:
        """Store arrays and yield the file of each; they are found once all, or a part, is synced.

        Raises:
            StorageError: The disk is full or fails; what was synced before stays.
        """
        with (
            disk_errors_explained(self.folder, REMEDY),
            self._index() as index,
            _opened_at_end(self._file, index, self.item_bytes) as stream,
        ):
            waiting: list[tuple[FileState, Place]] = []
            try:
                for file, stored in arrays:
                    rows, columns = stored.array.shape[:2]
                    place = Place(
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
    def filling(self, reporter: Reporter | None = None) -> Iterator[None]:
        """Keep every other process from filling the store, and wait for one that does."""
        with (self.folder / "filling.lock").open("w") as lock:
            with disk_errors_explained(self.folder, REMEDY):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    (reporter or Reporter()).note(
                        f"Another process makes the {self.holds} in {self.folder}: waiting for it."
                    )
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def mapped(self) -> tuple[NDArray[np.uint8], int]:
        """Return all bytes, read from the disk when they are used, and the number of their file.

        Raises:
            FileNotFoundError: Somebody has removed the store.
        """
        with self._file.open("rb") as stream:
            return np.memmap(stream, np.uint8, mode="r"), os.fstat(stream.fileno()).st_ino

    @property
    def _file(self) -> Path:
        return self.folder / "arrays.bin"

    @contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        index = sqlite3.connect(self.folder / "index.sqlite", timeout=60)
        try:
            index.execute(_TABLE)
            yield index
        finally:
            index.close()


def store_folder(root: Path, *, form: str, owner: str) -> Path:
    """Return where the store of a form and an owner lies, whether it exists or not."""
    digest = hashlib.sha256(f"{_FORMAT}\0{form}\0{owner}".encode(errors="surrogateescape"))
    return root / f"{form}-{digest.hexdigest()[:16]}"


def _opened_at_end(path: Path, index: sqlite3.Connection, item_bytes: int) -> BinaryIO:
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
    descriptor: int, index: sqlite3.Connection, waiting: list[tuple[FileState, Place]]
) -> None:
    """Make the arrays safe on disk, and then known."""
    os.fsync(descriptor)
    with index:
        index.executemany(
            "INSERT OR REPLACE INTO arrays VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(*file, *place) for file, place in waiting],
        )
    waiting.clear()
