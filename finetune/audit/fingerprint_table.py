"""Table of the fingerprints of a dataset's images, stored on disk and memory-mapped."""

import os
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
from finetune.data.cache.eviction import evict_to_fit, warn_of_cache_failure
from finetune.data.cache.file_stamp import FileStamp, read_file_stamps
from finetune.data.cache.memory_store import MemoryStore
from finetune.data.images.validate import map_in_threads
from finetune.errors import DataError, StorageError
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions, RejectedFile, Reporter, Sample

_STORE_FORMAT = "fingerprints-2"
"""Name and version in the store's folder name; raised when a fingerprint measures other things."""

_CHUNK_SIZE = 16_384


class FingerprintTable:
    """Fingerprints of N images, read from disk when they are used.

    Args:
        store: Store that holds them.
        locations: Entry of each image in the store, shape (N, 5).
        options: How the images were read.
    """

    def __init__(
        self,
        store: ArrayStore | MemoryStore,
        locations: NDArray[np.int64],
        options: ReadOptions = DEFAULT_READ_OPTIONS,
    ) -> None:
        self.options = options
        self._store = store  # holds the lock that prevents its eviction
        self._record_indices = locations[:, 0] // FINGERPRINT.itemsize
        stored = store.memory_map()[0] if len(locations) else np.empty(0, np.uint8)
        # another process may have been stopped while it wrote the last record
        self._records = stored[: len(stored) // FINGERPRINT.itemsize * FINGERPRINT.itemsize].view(
            FINGERPRINT
        )

    def __len__(self) -> int:
        """Return N."""
        return len(self._record_indices)

    @property
    def folder(self) -> Path:
        """Return the folder of the store."""
        return self._store.folder

    def read_column(self, name: str, *, chunk_size: int = _CHUNK_SIZE) -> NDArray[Any]:
        """Return one field of ``FINGERPRINT`` of every image, shape (N, …).

        Args:
            name: Name of the field.
            chunk_size: Number of records that are gathered at a time.
        """
        columns = [
            self._records[self._record_indices[first : first + chunk_size]][name]
            for first in range(0, len(self), chunk_size)
        ]
        return np.concatenate(columns) if columns else np.empty(0, FINGERPRINT[name].base)

    def read_digests(self) -> list[str]:
        """Return the digest of every image's file, hexadecimal, length N."""
        return [digest.tobytes().hex() for digest in self.read_column("digest")]

    def read_thumbnails(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return grey levels in [0, 255] of the given rows, shape (n, side, side)."""
        return np.asarray(self._records["thumbnail"][self._record_indices[rows]], np.float32)

    def compute_shorter_sides(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the shorter sides of the given rows in pixels, shape (n,)."""
        records = self._records[self._record_indices[rows]]
        return np.asarray(np.minimum(records["width"], records["height"]), np.float32)


def fingerprint_files(
    root: Path,
    samples: Sequence[Sample],
    *,
    options: ReadOptions,
    stores_dir: Path | None,
    limit_bytes: int,
    reporter: Reporter,
) -> tuple[list[Sample], FingerprintTable, list[RejectedFile]]:
    """Return the readable samples, their fingerprints, and the rejected files with their reasons.

    Files that have not changed since their fingerprint was stored are not opened again.

    Args:
        root: Folder to which relative paths refer.
        samples: Samples whose files are read.
        options: How image files are read.
        stores_dir: Folder of all stores; None stores nothing permanently.
        limit_bytes: Limit of the size of all stores together.
        reporter: Receives the progress, file by file.
    """
    files = read_file_stamps([root / sample.path for sample in samples])
    result = None
    if stores_dir is not None:
        # a store that fails is no reason to fail: the fingerprints are computed in every run then
        try:
            store = _open_store(stores_dir, root, options)
            result = _fill_table(store, files, options, reporter, limit_bytes=limit_bytes)
        except StorageError as error:
            reporter.finish()
            warn_of_cache_failure(stores_dir, error, reporter)
    if result is None:
        # without a folder for temporary files they stay in memory, 1.1 kB each
        with suppress(StorageError, FileNotFoundError):
            result = _fill_table(_open_temporary_store(root, options), files, options, reporter)
    if result is None:
        reporter.finish()
        result = _fill_table(MemoryStore(Path(os.devnull)), files, options, reporter)
    assert result is not None, "a store without a limit always fits"
    table, reasons = result
    readable = [sample for row, sample in enumerate(samples) if row not in reasons]
    rejected = [RejectedFile(samples[row].path, reason) for row, reason in sorted(reasons.items())]
    return readable, table, rejected


def _fill_table(
    store: ArrayStore | MemoryStore,
    files: Sequence[FileStamp],
    options: ReadOptions,
    reporter: Reporter,
    *,
    limit_bytes: int | None = None,
) -> tuple[FingerprintTable, dict[int, str]] | None:
    """Return the table and, by row, the reasons of rejected files; None if the limit forbids it."""
    reasons: dict[int, str] = {}
    with store.lock_for_filling(reporter):
        store.reset_if_mostly_stale()
        entries = store.find(files)
        is_stored = entries[:, 0] != NOT_STORED.start
        # the limit may have changed since
        is_stored &= entries[:, 3] * entries[:, 4] <= options.max_pixels
        missing = np.flatnonzero(~is_stored).tolist()
        needed_bytes = len(missing) * FINGERPRINT.itemsize
        root = store.folder.parent
        if limit_bytes is not None and not evict_to_fit(
            root, needed_bytes=needed_bytes, limit_bytes=limit_bytes
        ):
            return None
        reporter.start("checking images", len(files))
        reporter.advance(len(files) - len(missing))
        for _ in store.append(_compute_missing(files, missing, options, reasons)):
            reporter.advance()
        reporter.advance(len(reasons))
        reporter.finish()
        readable = [file for row, file in enumerate(files) if row not in reasons]
        return FingerprintTable(store, store.find(readable), options), reasons


def _compute_missing(
    files: Sequence[FileStamp], rows: Sequence[int], options: ReadOptions, reasons: dict[int, str]
) -> Iterator[tuple[FileStamp, StoreEntry]]:
    """Yield the store entries of readable files; add the reasons of the others to ``reasons``."""
    compute = partial(_try_fingerprint, options=options)
    paths = (Path(files[row].path) for row in rows)
    for row, result in zip(rows, map_in_threads(compute, paths), strict=True):
        if isinstance(result, str):
            reasons[row] = result
        else:
            entry = StoreEntry(result[None, None], int(result["height"]), int(result["width"]))
            yield files[row], entry


def _try_fingerprint(path: Path, options: ReadOptions) -> NDArray[Any] | str:
    """Return the fingerprint of a file, or the reason for its rejection."""
    try:
        return compute_fingerprint(path, options=options)
    except DataError as error:
        return str(error)


def _open_store(stores_dir: Path, root: Path, options: ReadOptions) -> ArrayStore:
    return ArrayStore(
        stores_dir,
        tag=f"{_STORE_FORMAT}{options.pixel_tag}",
        owner=str(root),
        item_bytes=FINGERPRINT.itemsize,
        content="fingerprints",
    )


def _open_temporary_store(root: Path, options: ReadOptions) -> ArrayStore:
    """Open a store that is removed when it is garbage-collected."""
    folder = Path(mkdtemp(prefix="finetune-"))
    try:
        store = _open_store(folder, root, options)
    except StorageError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store
