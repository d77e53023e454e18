"""Features of images on disk: written once, read through the page cache."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from finetune.data.cache.array_store import ArrayStore, StoreEntry
from finetune.data.cache.file_stamp import FileStamp
from finetune.models.head import compute_backbone_digest
from finetune.types import PreprocessSpec


class FeatureStore(ArrayStore):
    """A folder of one output for one view of many images, each float32 of shape (1, D).

    Args:
        root: Folder of all stores.
        tag: ID of the output, the backbone and the view.
        owner: The dataset that the images belong to, by its folder.

    Raises:
        StorageError: The folder cannot be created or written.
    """

    def __init__(self, root: Path, *, tag: str, owner: str) -> None:
        super().__init__(root, tag=tag, owner=owner, item_bytes=4, content="features")


class StoredFeatures:
    """Features (N, D) in a store, of which any rows are read through the page cache.

    Args:
        store: The store that holds them.
        locations: ``ArrayLocation`` of each image, shape (N, 5).
    """

    def __init__(self, store: FeatureStore, locations: NDArray[np.int64]) -> None:
        self._store = store  # holds the lock that protects the store from eviction
        columns = int(locations[0, 2])
        mapped, _ = store.memory_map()
        self._table = mapped.view(np.float32).reshape(-1, columns)
        self._row_indices = locations[:, 0] // (4 * columns)
        self.shape = (len(locations), columns)
        self.features_id = store.folder.name
        """ID of the features, another one for each backbone, preprocessing and view."""

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features of some rows, shape (n, D)."""
        return self._table[self._row_indices[rows]]


def to_store_entries(
    files: Sequence[FileStamp], features: NDArray[np.float32]
) -> Iterator[tuple[FileStamp, StoreEntry]]:
    """Yield the store entries of files with the features (N, D)."""
    for file, row in zip(files, features, strict=True):
        yield file, StoreEntry(row[None])


def compute_store_digest(
    network: nn.Module, *, model_args_json: str, spec: PreprocessSpec, precision: str
) -> str:
    """Return an ID of the backbone, its preprocessing and the precision: 16 hex digits.

    It is part of the names of stores on disk and must not change between releases.
    """
    parts = (
        compute_backbone_digest(network), model_args_json, _format_spec(spec), precision,
    )  # fmt: skip
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
