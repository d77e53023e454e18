"""Features of images on disk: written once, read through the page cache."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.data.cache.array_store import NOT_STORED, StoreEntry
from finetune.data.cache.eviction import describe_cache_failure, warn_of_cache_failure
from finetune.data.cache.fallback_store import FallbackStore
from finetune.data.cache.file_stamp import FileStamp, read_file_stamps
from finetune.data.cache.memory_store import MemoryStores
from finetune.errors import StorageError
from finetune.models.head import compute_backbone_digest
from finetune.types import PixelRange, PreprocessSpec, Reporter

_memory_stores: WeakKeyDictionary[Reporter, MemoryStores] = WeakKeyDictionary()
"""Features of each command whose disk has failed."""


class FeatureStore(FallbackStore):
    """A folder of one output for one view of many images, each float32 of shape (1, D).

    Features stay in memory if the folder cannot be written, after a warning; they are kept for
    other objects with the same reporter, which is that of one command.

    Args:
        root: Folder of all stores.
        tag: ID of the output, the backbone and the view.
        owner: The dataset that the images belong to, by its folder.
        is_large: Whether the output is too large for the memory, as activations are.
        reporter: Receiver of the warning.

    Raises:
        StorageError: The folder cannot be created or written, and the output is large; so do the
            methods.
    """

    def __init__(
        self, root: Path, *, tag: str, owner: str, is_large: bool, reporter: Reporter
    ) -> None:
        def handle_failure(error: StorageError) -> None:
            if is_large:
                raise StorageError(
                    f"The activations cannot be stored: {describe_cache_failure(root, error)}. "
                    f"Make room there, choose another folder with data.cache=PATH or "
                    f"FINETUNE_CACHE, or set probe.depth=1."
                ) from error
            warn_of_cache_failure(root, error, reporter)

        super().__init__(
            root,
            tag=tag,
            owner=owner,
            item_bytes=4,
            content="features",
            on_failure=handle_failure,
            memory_stores=_memory_stores.setdefault(reporter, MemoryStores()),
        )


class StoredFeatures:
    """Features (N, D) in a store, of which any rows are read, from disk through the page cache.

    Args:
        store: The store that holds them.
        locations: ``ArrayLocation`` of each image, shape (N, 5).
    """

    def __init__(self, store: FeatureStore, locations: NDArray[np.int64]) -> None:
        self._store = store  # holds the lock that protects the store from eviction
        columns = int(locations[0, 2]) if len(locations) else 1  # any, as there is nothing to read
        mapped, _ = store.memory_map()
        self._table = mapped.view(np.float32).reshape(-1, columns)
        self._row_indices = locations[:, 0] // (4 * columns)
        self.shape = (len(locations), columns)
        self.features_id = store.folder.name
        """ID of the features, another one for each backbone, preprocessing and view."""

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features of some rows, shape (n, D)."""
        return self._table[self._row_indices[rows]]


class ViewStores:
    """Stores of all outputs of an extractor for some views of the same files.

    Args:
        stores: The store of each view, for each output; of all views, or of the first ones.
        files: The N files.
        reporter: Receiver of messages while another process fills a store.
    """

    def __init__(
        self,
        stores: Sequence[Sequence[FeatureStore]],
        files: Sequence[FileStamp],
        reporter: Reporter,
    ) -> None:
        self._stores = stores
        self._files = files
        self._reporter = reporter
        self._locks = ExitStack()
        self._is_missing = np.zeros((len(stores), len(stores[0]), len(files)), bool)

    def __enter__(self) -> "ViewStores":
        """Lock all stores and look the files up.

        Raises:
            StorageError: The disk fails.
        """
        with ExitStack() as locks:
            for number, by_view in enumerate(self._stores):
                for view, store in enumerate(by_view):
                    locks.enter_context(store.lock_for_filling(self._reporter))
                    store.reset_if_mostly_stale()
                    locations = store.find(self._files)
                    self._is_missing[number, view] = locations[:, 0] == NOT_STORED.start
            self._locks = locks.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Release the locks."""
        self._locks.close()

    def find_missing(self) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """Return ascending indices of the files, and of the views, of which any is missing."""
        is_file_missing = self._is_missing.any(axis=(0, 1))
        is_view_missing = self._is_missing.any(axis=(0, 2))
        views = tuple(np.flatnonzero(is_view_missing).tolist())
        return np.flatnonzero(is_file_missing), views

    def count_missing(self) -> NDArray[np.int64]:
        """Return the number of items of each output to be stored."""
        counts: NDArray[np.int64] = self._is_missing.sum(axis=(1, 2))
        return counts

    def append(
        self, rows: NDArray[np.int64], views: Sequence[int], outputs: Sequence[Tensor]
    ) -> None:
        """Store what is missing of some files.

        Args:
            rows: Indices of the n files.
            views: Indices of the V views.
            outputs: Outputs, each (n, V, D).

        Raises:
            StorageError: The disk is full or fails.
        """
        for by_view, is_missing, output in zip(
            self._stores, self._is_missing, outputs, strict=True
        ):
            for view, features in zip(views, output.unbind(dim=1), strict=True):
                if view >= len(by_view):
                    continue
                is_new = is_missing[view, rows]
                files = [self._files[row] for row in rows[is_new].tolist()]
                items = features.numpy()[is_new]
                entries = (
                    (file, StoreEntry(item[None])) for file, item in zip(files, items, strict=True)
                )
                for _ in by_view[view].append(entries):
                    pass

    def read(self) -> list[list[StoredFeatures]]:
        """Return the features of all files for each output and view; all are stored."""
        return [
            [StoredFeatures(store, store.find(self._files)) for store in by_view]
            for by_view in self._stores
        ]


def open_view_stores(
    root: Path,
    tags: Sequence[Sequence[str]],
    paths: Sequence[Path],
    *,
    owner: str,
    large_output: int | None,
    reporter: Reporter,
) -> ViewStores:
    """Return the stores of all outputs of an extractor for some views of image files.

    Args:
        root: Folder of all stores.
        tags: ID of the output, the backbone and the view of each store, for each output.
        paths: Image files.
        owner: The dataset that the images belong to, by its folder.
        large_output: Index of the output that is too large for the memory; None for none.
        reporter: Receiver of messages.
    """
    stores = [
        [
            FeatureStore(
                root, tag=tag, owner=owner, is_large=number == large_output, reporter=reporter
            )
            for tag in by_view
        ]
        for number, by_view in enumerate(tags)
    ]
    return ViewStores(stores, read_file_stamps(paths), reporter)


def compute_store_digest(
    network: nn.Module,
    *,
    model_args_json: str,
    spec: PreprocessSpec,
    precision: str,
    pixel_range: PixelRange | None,
) -> str:
    """Return an ID of the backbone, its preprocessing and the precision: 16 hex digits.

    It is part of the names of stores on disk and must not change between releases.
    """
    parts = [
        compute_backbone_digest(network), model_args_json, _format_spec(spec), precision,
    ]  # fmt: skip
    if pixel_range is not None:
        parts.append(f"pixel_range={pixel_range}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _format_spec(spec: PreprocessSpec) -> str:
    """Return the text that stands for a preprocessing spec in digests.

    Written out, so that renaming the class or its fields leaves the stores on disk valid.
    """
    return (
        f"PreprocessSpec(input_size={spec.input_size!r}, mean={spec.mean!r}, std={spec.std!r}, "
        f"interpolation={spec.interpolation!r}, crop_pct={spec.crop_pct!r}, "
        f"crop_mode={spec.crop_mode!r})"
    )
