"""What a frozen backbone says of images: computed once, kept on disk, read where it lies."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.cache.array_store import ArrayStore, Stored
from finetune.data.cache.file_stamp import FileState
from finetune.data.dataset import Batch
from finetune.data.transforms.eval_transform import Zoomed
from finetune.models.classifier import normalise
from finetune.probe.extractor import Answers
from finetune.types import PreprocessSpec


@dataclass(frozen=True, slots=True)
class Views:
    """Which views of an image a backbone is asked about; the first is that of evaluation.

    Attributes:
        mirrored: The same in a mirror.
        parts: Parts of the image, every other one in a mirror if ``mirrored``.
    """

    mirrored: bool = False
    parts: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What tells each from the others."""
        parts = (
            f"{Zoomed.SHARE:g}-at-{across:g}-{down:g}{'-mirrored' if self._turns(number) else ''}"
            for number, (across, down) in enumerate(Zoomed.ANCHORS[: self.parts])
        )
        return ("seen", *(("mirrored",) if self.mirrored else ()), *parts)

    def of(self, pixels: Tensor) -> Iterator[Tensor]:
        """Yield the views (B, H, W, C), from those that lie below each other."""
        whole, *parts = pixels.chunk(1 + self.parts, dim=1)
        yield whole
        if self.mirrored:
            yield whole.flip(2)
        for number, part in enumerate(parts):
            yield part.flip(2) if self._turns(number) else part

    def _turns(self, number: int) -> bool:
        return self.mirrored and number % 2 == 1


class FeatureStore(ArrayStore):
    """One folder of answers about images, each float32 of shape (1, D).

    Args:
        root: Folder of all stores.
        form: Which answer about which view of an image, by which backbone.
        owner: What the images belong to, as the folder of a data set.

    Raises:
        StorageError: The folder cannot be made or written.
    """

    def __init__(self, root: Path, *, form: str, owner: str) -> None:
        super().__init__(root, form=form, owner=owner, item_bytes=4, holds="features")


class StoredFeatures:
    """Features in a store, read through the page cache some at a time.

    Args:
        store: Holds them.
        places: Where that of each image lies, shape (N, 5).
    """

    def __init__(self, store: FeatureStore, places: NDArray[np.int64]) -> None:
        self._store = store  # in use, and so not removed
        columns = int(places[0, 2])
        mapped, _ = store.mapped()
        self._table = mapped.view(np.float32).reshape(-1, columns)
        self._numbers = places[:, 0] // (4 * columns)
        self.shape = (len(places), columns)
        self.made_by = store.folder.name
        """Tells them from the features that another backbone, or another view, would have."""

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some rows, shape (n, D)."""
        return self._table[self._numbers[rows]]


def extract(
    answers: Answers,
    batches: Iterable[Batch],
    *,
    spec: PreprocessSpec,
    device: torch.device,
    views: Views,
    precision: AbstractContextManager[object] | None = None,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield rows (B,) of batches and each answer about them, float32 (B, V, D), on the CPU.

    The network must be in eval mode, on the device.

    Args:
        answers: Asks the network.
        batches: Of pixels (B, (1 + parts) * H, W, C).
        spec: How they are normalised.
        device: Where they are.
        views: What is wanted of each image.
        precision: Autocast, or None.
    """
    with precision or nullcontext():
        for batch in batches:
            with torch.inference_mode():
                pixels = batch["image"].to(device, non_blocking=True)
                of_views = [
                    answers(normalise(view, mean=spec.mean, std=spec.std))
                    for view in views.of(pixels)
                ]
                found = [
                    torch.stack(one, dim=1).float().cpu() for one in zip(*of_views, strict=True)
                ]
            yield batch["index"], [one.clone() for one in found]


def as_stored(
    files: Sequence[FileState], features: NDArray[np.float32]
) -> Iterator[tuple[FileState, Stored]]:
    """Yield what a store keeps of files, by their features (N, D)."""
    for file, row in zip(files, features, strict=True):
        yield file, Stored(row[None])
