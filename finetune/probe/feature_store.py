"""What a frozen backbone says of images: computed once, kept on disk, read where it lies."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.cache.array_store import ArrayStore, StoreEntry
from finetune.data.cache.file_stamp import FileStamp
from finetune.data.dataset import Batch
from finetune.data.transforms.eval_transform import MultiCropTransform
from finetune.models.classifier import normalise
from finetune.probe.extractor import FeatureExtractor
from finetune.types import PreprocessSpec


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """Which views of an image a backbone is asked about; the first is that of evaluation.

    Attributes:
        flipped: The same in a mirror.
        num_crops: Parts of the image, every other one in a mirror if ``flipped``.
    """

    flipped: bool = False
    num_crops: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What tells each from the others."""
        parts = (
            f"{MultiCropTransform.CROP_FRACTION:g}-at-{across:g}-{down:g}{'-mirrored' if self._is_flipped(number) else ''}"
            for number, (across, down) in enumerate(MultiCropTransform.ANCHORS[: self.num_crops])
        )
        return ("seen", *(("mirrored",) if self.flipped else ()), *parts)

    def iter_views(self, pixels: Tensor) -> Iterator[Tensor]:
        """Yield the views (B, H, W, C), from those that lie below each other."""
        whole, *parts = pixels.chunk(1 + self.num_crops, dim=1)
        yield whole
        if self.flipped:
            yield whole.flip(2)
        for number, part in enumerate(parts):
            yield part.flip(2) if self._is_flipped(number) else part

    def _is_flipped(self, index: int) -> bool:
        return self.flipped and index % 2 == 1


class FeatureStore(ArrayStore):
    """One folder of answers about images, each float32 of shape (1, D).

    Args:
        root: Folder of all stores.
        form: Which answer about which view of an image, by which backbone.
        owner: What the images belong to, as the folder of a data set.

    Raises:
        StorageError: The folder cannot be made or written.
    """

    def __init__(self, root: Path, *, tag: str, owner: str) -> None:
        super().__init__(root, tag=tag, owner=owner, item_bytes=4, content="features")


class StoredFeatures:
    """Features in a store, read through the page cache some at a time.

    Args:
        store: Holds them.
        places: Where that of each image lies, shape (N, 5).
    """

    def __init__(self, store: FeatureStore, locations: NDArray[np.int64]) -> None:
        self._store = store  # in use, and so not removed
        columns = int(locations[0, 2])
        mapped, _ = store.memory_map()
        self._table = mapped.view(np.float32).reshape(-1, columns)
        self._row_indices = locations[:, 0] // (4 * columns)
        self.shape = (len(locations), columns)
        self.features_id = store.folder.name
        """Tells them from the features that another backbone, or another view, would have."""

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some rows, shape (n, D)."""
        return self._table[self._row_indices[rows]]


def extract_features(
    extractor: FeatureExtractor,
    batches: Iterable[Batch],
    *,
    spec: PreprocessSpec,
    device: torch.device,
    views: ViewSpec,
    autocast: AbstractContextManager[object] | None = None,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield rows (B,) of batches and each answer about them, float32 (B, V, D), on the CPU.

    The network must be in eval mode, on the device.

    Args:
        extractor: Asks the network.
        batches: Of pixels (B, (1 + parts) * H, W, C).
        spec: How they are normalised.
        device: Where they are.
        views: What is wanted of each image.
        autocast: Autocast, or None.
    """
    with autocast or nullcontext():
        for batch in batches:
            with torch.inference_mode():
                pixels = batch["image"].to(device, non_blocking=True)
                of_views = [
                    extractor(normalise(view, mean=spec.mean, std=spec.std))
                    for view in views.iter_views(pixels)
                ]
                found = [
                    torch.stack(one, dim=1).float().cpu() for one in zip(*of_views, strict=True)
                ]
            yield batch["index"], [one.clone() for one in found]


def to_store_entries(
    files: Sequence[FileStamp], features: NDArray[np.float32]
) -> Iterator[tuple[FileStamp, StoreEntry]]:
    """Yield what a store keeps of files, by their features (N, D)."""
    for file, row in zip(files, features, strict=True):
        yield file, StoreEntry(row[None])
