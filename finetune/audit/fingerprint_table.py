"""A look at every image of a data set: taken once, kept on disk, read where it lies."""

import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.audit.fingerprint import LOOK, look_at
from finetune.data.cache.array_store import NOWHERE, ArrayStore, Stored
from finetune.data.cache.eviction import make_room
from finetune.data.cache.file_stamp import FileState, file_states
from finetune.data.images.validate import on_all_cores
from finetune.errors import DataError, StorageError
from finetune.types import Rejected, Reporter, Sample

_FORM = "looks-1"
"""Its number is raised when what a look measures changes."""

_CHUNK = 1024


class Looks:
    """What was seen of images, read from the disk when it is used.

    Args:
        store: Holds them.
        places: Where that of each image lies, shape (N, 5).
    """

    def __init__(self, store: ArrayStore, places: NDArray[np.int64]) -> None:
        self._store = store  # in use, and so not removed
        self._numbers = places[:, 0] // LOOK.itemsize
        stored = store.mapped()[0] if len(places) else np.empty(0, np.uint8)
        # another process may have been stopped in the middle of one
        self._table = stored[: len(stored) // LOOK.itemsize * LOOK.itemsize].view(LOOK)

    def __len__(self) -> int:
        """Return N."""
        return len(self._numbers)

    @property
    def folder(self) -> Path:
        """Return where they are kept."""
        return self._store.folder

    def column(self, name: str) -> NDArray[Any]:
        """Return one field of ``LOOK`` of every image, shape (N, …)."""
        parts = [self._table[rows][name] for rows in self._chunks()]
        return np.concatenate(parts) if parts else np.empty(0, LOOK[name].base)

    def thumbnails(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return grey levels in [0, 255] of some images, shape (n, side, side)."""
        return np.asarray(self._table["thumbnail"][self._numbers[rows]], np.float32)

    def shorter_sides(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the shorter side of some images in pixels, shape (n,)."""
        some = self._table[self._numbers[rows]]
        return np.asarray(np.minimum(some["width"], some["height"]), np.float32)

    def _chunks(self) -> Iterator[NDArray[np.int64]]:
        for first in range(0, len(self), 16 * _CHUNK):
            yield self._numbers[first : first + 16 * _CHUNK]


def look_at_files(
    root: Path,
    samples: Sequence[Sample],
    *,
    max_pixels: int,
    stores: Path | None,
    limit_bytes: int,
    reporter: Reporter,
) -> tuple[list[Sample], Looks, list[Rejected]]:
    """Return the samples whose file reads to its end, a look at each, and the others' reasons.

    A file that has not changed since an earlier look is not opened again.

    Args:
        root: What relative paths are relative to.
        samples: What to look at.
        max_pixels: Larger images are left out.
        stores: Folder of all stores; None keeps nothing.
        limit_bytes: Of all stores together.
        reporter: Told of each file.
    """
    files = file_states([root / sample.path for sample in samples])
    seen = None
    if stores is not None:
        # what is kept of images is no reason to fail: without a place it is made in every run
        with suppress(StorageError):
            store = _opened(stores, root)
            seen = _seen(store, files, max_pixels, reporter, limit_bytes=limit_bytes)
    if seen is None:
        seen = _seen(_passing_store(root), files, max_pixels, reporter)
    assert seen is not None, "without a limit there is room"
    looks, reasons = seen
    good = [sample for row, sample in enumerate(samples) if row not in reasons]
    rejected = [Rejected(samples[row].path, reason) for row, reason in sorted(reasons.items())]
    return good, looks, rejected


def _seen(
    store: ArrayStore,
    files: Sequence[FileState],
    max_pixels: int,
    reporter: Reporter,
    *,
    limit_bytes: int | None = None,
) -> tuple[Looks, dict[int, str]] | None:
    """Return the looks, and by row why the other files have none; None where there is no room."""
    reasons: dict[int, str] = {}
    with store.filling(reporter):
        store.forget_waste()
        found = store.find(files)
        known = found[:, 0] != NOWHERE.start
        known &= found[:, 3] * found[:, 4] <= max_pixels  # which may be another one by now
        missing = np.flatnonzero(~known).tolist()
        needed = len(missing) * LOOK.itemsize
        root = store.folder.parent
        if limit_bytes is not None and not make_room(
            root, needed_bytes=needed, limit_bytes=limit_bytes
        ):
            return None
        reporter.start("checking images", len(files))
        reporter.advance(len(files) - len(missing))
        for _ in store.append(_looked(files, missing, max_pixels, reasons)):
            reporter.advance()
        reporter.advance(len(reasons))
        reporter.finish()
        good = [file for row, file in enumerate(files) if row not in reasons]
        return Looks(store, store.find(good)), reasons


def _looked(
    files: Sequence[FileState], rows: Sequence[int], max_pixels: int, reasons: dict[int, str]
) -> Iterator[tuple[FileState, Stored]]:
    """Yield what is kept of the files that can be used; put down why the others cannot."""
    look = partial(_look_or_reason, max_pixels=max_pixels)
    paths = (Path(files[row].path) for row in rows)
    for row, found in zip(rows, on_all_cores(look, paths), strict=True):
        if isinstance(found, str):
            reasons[row] = found
        else:
            yield files[row], Stored(found[None, None], int(found["height"]), int(found["width"]))


def _look_or_reason(path: Path, max_pixels: int) -> NDArray[Any] | str:
    try:
        return look_at(path, max_pixels=max_pixels)
    except DataError as error:
        return str(error)


def _opened(stores: Path, root: Path) -> ArrayStore:
    return ArrayStore(stores, form=_FORM, owner=str(root), item_bytes=LOOK.itemsize, holds="looks")


def _passing_store(root: Path) -> ArrayStore:
    """Return a store that is removed when nothing uses it any longer."""
    folder = Path(mkdtemp(prefix="finetune-"))
    try:
        store = _opened(folder, root)
    except StorageError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store
