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

from finetune.audit.fingerprint import FINGERPRINT, compute_fingerprint
from finetune.data.cache.array_store import NOT_STORED, ArrayStore, StoreEntry
from finetune.data.cache.eviction import evict_to_fit
from finetune.data.cache.file_stamp import FileStamp, read_file_stamps
from finetune.data.images.validate import map_in_threads
from finetune.errors import DataError, StorageError
from finetune.types import RejectedFile, Reporter, Sample

_STORE_FORMAT = "looks-1"
"""Its number is raised when what a look measures changes."""

_CHUNK = 1024


class FingerprintTable:
    """What was seen of images, read from the disk when it is used.

    Args:
        store: Holds them.
        places: Where that of each image lies, shape (N, 5).
    """

    def __init__(self, store: ArrayStore, locations: NDArray[np.int64]) -> None:
        self._store = store  # in use, and so not removed
        self._record_indices = locations[:, 0] // FINGERPRINT.itemsize
        stored = store.memory_map()[0] if len(locations) else np.empty(0, np.uint8)
        # another process may have been stopped in the middle of one
        self._records = stored[: len(stored) // FINGERPRINT.itemsize * FINGERPRINT.itemsize].view(
            FINGERPRINT
        )

    def __len__(self) -> int:
        """Return N."""
        return len(self._record_indices)

    @property
    def folder(self) -> Path:
        """Return where they are kept."""
        return self._store.folder

    def read_column(self, name: str) -> NDArray[Any]:
        """Return one field of ``LOOK`` of every image, shape (N, …)."""
        parts = [self._records[rows][name] for rows in self._iter_chunks()]
        return np.concatenate(parts) if parts else np.empty(0, FINGERPRINT[name].base)

    def read_thumbnails(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return grey levels in [0, 255] of some images, shape (n, side, side)."""
        return np.asarray(self._records["thumbnail"][self._record_indices[rows]], np.float32)

    def compute_shorter_sides(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the shorter side of some images in pixels, shape (n,)."""
        some = self._records[self._record_indices[rows]]
        return np.asarray(np.minimum(some["width"], some["height"]), np.float32)

    def _iter_chunks(self) -> Iterator[NDArray[np.int64]]:
        for first in range(0, len(self), 16 * _CHUNK):
            yield self._record_indices[first : first + 16 * _CHUNK]


def fingerprint_files(
    root: Path,
    samples: Sequence[Sample],
    *,
    max_pixels: int,
    stores_dir: Path | None,
    limit_bytes: int,
    reporter: Reporter,
) -> tuple[list[Sample], FingerprintTable, list[RejectedFile]]:
    """Return the samples whose file reads to its end, a look at each, and the others' reasons.

    A file that has not changed since an earlier look is not opened again.

    Args:
        root: What relative paths are relative to.
        samples: What to look at.
        max_pixels: Larger images are left out.
        stores_dir: Folder of all stores; None keeps nothing.
        limit_bytes: Of all stores together.
        reporter: Told of each file.
    """
    files = read_file_stamps([root / sample.path for sample in samples])
    seen = None
    if stores_dir is not None:
        # what is kept of images is no reason to fail: without a place it is made in every run
        with suppress(StorageError):
            store = _open_store(stores_dir, root)
            seen = _fill_table(store, files, max_pixels, reporter, limit_bytes=limit_bytes)
    if seen is None:
        seen = _fill_table(_open_temporary_store(root), files, max_pixels, reporter)
    assert seen is not None, "without a limit there is room"
    looks, reasons = seen
    good = [sample for row, sample in enumerate(samples) if row not in reasons]
    rejected = [RejectedFile(samples[row].path, reason) for row, reason in sorted(reasons.items())]
    return good, looks, rejected


def _fill_table(
    store: ArrayStore,
    files: Sequence[FileStamp],
    max_pixels: int,
    reporter: Reporter,
    *,
    limit_bytes: int | None = None,
) -> tuple[FingerprintTable, dict[int, str]] | None:
    """Return the looks, and by row why the other files have none; None where there is no room."""
    reasons: dict[int, str] = {}
    with store.lock_for_filling(reporter):
        store.reset_if_mostly_stale()
        found = store.find(files)
        known = found[:, 0] != NOT_STORED.start
        known &= found[:, 3] * found[:, 4] <= max_pixels  # which may be another one by now
        missing = np.flatnonzero(~known).tolist()
        needed = len(missing) * FINGERPRINT.itemsize
        root = store.folder.parent
        if limit_bytes is not None and not evict_to_fit(
            root, needed_bytes=needed, limit_bytes=limit_bytes
        ):
            return None
        reporter.start("checking images", len(files))
        reporter.advance(len(files) - len(missing))
        for _ in store.append(_compute_missing(files, missing, max_pixels, reasons)):
            reporter.advance()
        reporter.advance(len(reasons))
        reporter.finish()
        good = [file for row, file in enumerate(files) if row not in reasons]
        return FingerprintTable(store, store.find(good)), reasons


def _compute_missing(
    files: Sequence[FileStamp], rows: Sequence[int], max_pixels: int, reasons: dict[int, str]
) -> Iterator[tuple[FileStamp, StoreEntry]]:
    """Yield what is kept of the files that can be used; put down why the others cannot."""
    look = partial(_try_fingerprint, max_pixels=max_pixels)
    paths = (Path(files[row].path) for row in rows)
    for row, found in zip(rows, map_in_threads(look, paths), strict=True):
        if isinstance(found, str):
            reasons[row] = found
        else:
            yield (
                files[row],
                StoreEntry(found[None, None], int(found["height"]), int(found["width"])),
            )


def _try_fingerprint(path: Path, max_pixels: int) -> NDArray[Any] | str:
    try:
        return compute_fingerprint(path, max_pixels=max_pixels)
    except DataError as error:
        return str(error)


def _open_store(stores_dir: Path, root: Path) -> ArrayStore:
    return ArrayStore(
        stores_dir,
        tag=_STORE_FORMAT,
        owner=str(root),
        item_bytes=FINGERPRINT.itemsize,
        content="looks",
    )


def _open_temporary_store(root: Path) -> ArrayStore:
    """Return a store that is removed when nothing uses it any longer."""
    folder = Path(mkdtemp(prefix="finetune-"))
    try:
        store = _open_store(folder, root)
    except StorageError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store
