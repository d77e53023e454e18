"""Decoded images on disk: packed uint8 pixels that all processes map, and an index of them.

A store is a folder with ``pixels.bin`` (images one after the other, each H x W x 3, C order),
``index.sqlite`` (which file lies where, and of what size and time it was when it was decoded) and
two lock files. Pixels are only ever appended; the index is written after them, so that a store that
was being filled when its process was killed holds what the index says, and goes on from there.
"""

import fcntl
import hashlib
import os
import re
import shutil
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.data.picture import ArrayPicture, Picture, Pixels
from finetune.data.source import NamedRows
from finetune.errors import StorageError
from finetune.storage import disk_errors_explained
from finetune.types import Reporter

_FORMAT = 1
"""Raised when what is stored, or how, changes; older stores are then left to be cleared."""

_TABLE = """CREATE TABLE IF NOT EXISTS images (
    path TEXT PRIMARY KEY, bytes INTEGER, ctime_ns INTEGER,
    start INTEGER, height INTEGER, width INTEGER, full_height INTEGER, full_width INTEGER
) WITHOUT ROWID"""


_REMEDY = (
    "Free some space there, name another place with data.cache=PATH or FINETUNE_CACHE, or read "
    "from the files with data.cache=off."
)


_AGAIN = "which held the run's pixels. They are decoded again when the run goes on with --resume."


class Place(NamedTuple):
    """Where an image lies in ``pixels.bin``, and how large the full image is."""

    start: int
    height: int
    width: int
    full_height: int
    full_width: int


NOWHERE = Place(-1, 0, 0, 0, 0)
"""The place of an image that is not stored."""


class FileState(NamedTuple):
    """What tells that a file is the one that was decoded.

    Attributes:
        path: Absolute.
        num_bytes: Its size.
        ctime_ns: When it or its name last changed; unlike the time of writing nothing sets it back.
    """

    path: str
    num_bytes: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Stored:
    """An image that is ready to be stored.

    Attributes:
        pixels: uint8, shape (H, W, 3).
        full_height: Of the image that it was made from.
        full_width: Of the image that it was made from.
    """

    pixels: Pixels
    full_height: int
    full_width: int


class PixelStore:
    """One folder of decoded images, all of the same form.

    Args:
        root: Folder of all stores.
        form: What is stored of an image, in a word, as in "short-379".
        owner: What the images belong to, as the folder of a data set; it gives the store its name.

    Raises:
        StorageError: The folder cannot be made or written.
    """

    def __init__(self, root: Path, *, form: str, owner: str) -> None:
        self.folder = store_folder(root, form=form, owner=owner)
        with disk_errors_explained(self.folder, _REMEDY):
            weakref.finalize(self, os.close, _shared_lock(self.folder))
            (self.folder / "pixels.bin").touch()  # the last use, by which old stores are cleared

    def find(self, files: Sequence[FileState]) -> NDArray[np.int64]:
        """Return the ``Place`` of each file, shape (N, 5).

        It is ``NOWHERE`` for files that are absent or have changed since, and for all where the
        index is damaged, which is begun anew.
        """
        with disk_errors_explained(self.folder, _REMEDY):
            try:
                return self._find(files)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # the disk, not what is in the file
                    raise
                (self.folder / "index.sqlite").unlink()
                return self._find(files)

    def forget_waste(self) -> None:
        """Begin anew where over half of the pixels are of files that have changed since."""
        with disk_errors_explained(self.folder, _REMEDY), suppress(sqlite3.DatabaseError):
            size = "height * width * 3"
            with self._index() as index, index:
                ends = index.execute(f"SELECT max(start + {size}), sum({size}) FROM images")
                end, used = ends.fetchone()
                if end is not None and 2 * used < end:
                    index.execute("DELETE FROM images")

    def _find(self, files: Sequence[FileState]) -> NDArray[np.int64]:
        places = np.empty((len(files), len(Place._fields)), np.int64)
        end = (self.folder / "pixels.bin").stat().st_size
        with self._index() as index:
            for number, file in enumerate(files):
                row = index.execute("SELECT * FROM images WHERE path = ?", file[:1]).fetchone()
                found = NOWHERE if row is None or file != row[:3] else Place(*row[3:])
                lost = found.start + found.height * found.width * 3 > end
                places[number] = NOWHERE if lost else found
        return places

    def append(self, images: Iterable[tuple[FileState, Stored]]) -> Iterator[FileState]:
        """Store images and yield the file of each; they are found once all, or a part, is synced.

        Raises:
            StorageError: The disk is full or fails; what was synced before stays.
        """
        pixels_file = self.folder / "pixels.bin"
        with (
            disk_errors_explained(self.folder, _REMEDY),
            self._index() as index,
            _opened_at_end(pixels_file, index) as pixels,
        ):
            waiting: list[tuple[FileState, Place]] = []
            try:
                for file, image in images:
                    height, width, _ = image.pixels.shape
                    place = Place(pixels.tell(), height, width, image.full_height, image.full_width)
                    pixels.write(np.ascontiguousarray(image.pixels).data)
                    waiting.append((file, place))
                    if len(waiting) >= 1000:
                        _sync(pixels.fileno(), index, waiting)
                    yield file
            finally:
                pixels.flush()
                _sync(pixels.fileno(), index, waiting)

    @contextmanager
    def filling(self, reporter: Reporter | None = None) -> Iterator[None]:
        """Keep every other process from filling the store, and wait for one that does."""
        with (self.folder / "filling.lock").open("w") as lock:
            with disk_errors_explained(self.folder, _REMEDY):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    (reporter or Reporter()).note(
                        f"Another process decodes the images into {self.folder}: waiting for it."
                    )
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def mapped(self) -> tuple[NDArray[np.uint8], int]:
        """Return all pixels, read from the disk when they are used, and the number of their file.

        Raises:
            StorageError: Somebody has removed the store.
        """
        try:
            with (self.folder / "pixels.bin").open("rb") as stream:
                pixels = np.memmap(stream, np.uint8, mode="r")
                return pixels, os.fstat(stream.fileno()).st_ino
        except FileNotFoundError as error:
            raise StorageError(f"{self.folder} is gone, {_AGAIN}") from error

    @contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        index = sqlite3.connect(self.folder / "index.sqlite", timeout=60)
        try:
            index.execute(_TABLE)
            yield index
        finally:
            index.close()


class StoredSource(NamedRows):
    """Pictures in a store.

    Args:
        store: Holds them.
        paths: Image files, shape (N,).
        places: Where each lies, shape (N, 5).
    """

    def __init__(self, store: PixelStore, paths: Sequence[Path], places: NDArray[np.int64]) -> None:
        super().__init__(paths)
        self.places = places
        self.store = store
        # at once, since another run may begin the file anew; this one keeps the old
        self._pixels: NDArray[np.uint8] | None
        self._pixels, self._file_number = store.mapped()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # a copy maps the file by itself

    def open(self, row: int) -> Picture:
        """Return the picture of a row; its pixels are read from the disk when they are used.

        Raises:
            StorageError: In a copy, that the store was removed or begun anew.
        """
        if self._pixels is None:
            self._pixels, file_number = self.store.mapped()
            if file_number != self._file_number:
                raise StorageError(f"Another run has begun {self.store.folder} anew, {_AGAIN}")
        start, height, width, full_height, full_width = self.places[row].tolist()
        pixels = self._pixels[start : start + height * width * 3].reshape(height, width, 3)
        return ArrayPicture(pixels, height=full_height, width=full_width)


def file_states(paths: Sequence[Path]) -> list[FileState]:
    """Return the size and time of each file; of a missing one, -1."""
    states = []
    for path in paths:
        try:
            found = path.stat()
            states.append(FileState(str(path), found.st_size, found.st_ctime_ns))
        except OSError:
            states.append(FileState(str(path), -1, -1))
    return states


def store_folder(root: Path, *, form: str, owner: str) -> Path:
    """Return where the store of a form and an owner lies, whether it exists or not."""
    digest = hashlib.sha256(f"{_FORMAT}\0{form}\0{owner}".encode(errors="surrogateescape"))
    return root / f"{form}-{digest.hexdigest()[:16]}"


def stored_bytes(folder: Path) -> int:
    """Return the size of a store; 0 where there is none."""
    # by state, since SQLite's journal comes and goes
    return sum(max(0, file.num_bytes) for file in file_states(list(folder.glob("*"))))


def make_room(root: Path, *, needed_bytes: int, limit_bytes: int) -> bool:
    """Remove the stores used longest ago until ``needed_bytes`` more fit; tell whether they do.

    Stores that a process uses stay.
    """
    with _alone_in(root):
        found = (file for file in root.glob("*/pixels.bin") if _is_store(file.parent))
        stores = sorted(found, key=lambda file: file.stat().st_mtime)
        used = sum(stored_bytes(file.parent) for file in stores)
        for file in stores:
            if used + needed_bytes <= limit_bytes:
                break
            size = stored_bytes(file.parent)
            if _remove_unused(file.parent):
                used -= size
    return used + needed_bytes <= limit_bytes


def _is_store(folder: Path) -> bool:
    """Tell a store from what else lies in a folder that the user named."""
    known = {"pixels.bin", "pixels.new", "in-use.lock", "filling.lock", "index.sqlite"}
    names = {file.name.removesuffix("-journal") for file in folder.iterdir()}
    return bool(re.search(r"-[0-9a-f]{16}$", folder.name)) and names <= known


def _remove_unused(folder: Path) -> bool:
    with (folder / "in-use.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _shared_lock(folder: Path) -> int:
    """Return an open descriptor that keeps a store from being removed until it is closed."""
    with _alone_in(folder.parent):
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / "in-use.lock", os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """Keep every other process from opening and removing stores.

    Raises:
        StorageError: The file system has no locks.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "stores.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageError(f"Cannot lock {root}: {error.strerror}. {_REMEDY}") from error
        yield


def _opened_at_end(path: Path, index: sqlite3.Connection) -> BinaryIO:
    """Return the file of pixels at the end of what the index knows, which then is all there is."""
    with index:  # what a shortened file has lost must not be found again once it has grown
        lost = "DELETE FROM images WHERE start + height * width * 3 > ?"
        index.execute(lost, (path.stat().st_size,))
    end = index.execute("SELECT max(start + height * width * 3) FROM images").fetchone()[0]
    if end is None:  # a new file: others may read the old one, and do not bear that it shrinks
        fresh = path.with_name("pixels.new")
        fresh.touch()
        fresh.replace(path)
    pixels = path.open("r+b")
    pixels.truncate(end or 0)  # what a killed process had written behind the index
    pixels.seek(0, os.SEEK_END)
    return pixels


def _sync(
    descriptor: int, index: sqlite3.Connection, waiting: list[tuple[FileState, Place]]
) -> None:
    """Make the pixels safe on disk, and then known."""
    os.fsync(descriptor)
    with index:
        index.executemany(
            "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(*file, *place) for file, place in waiting],
        )
    waiting.clear()
