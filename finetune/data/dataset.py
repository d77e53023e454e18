"""Images as batches of uint8 pixels, with the row that each came from."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.data.augment import Transform
from finetune.data.decode import DEFAULT_MAX_PIXELS, decode_image
from finetune.errors import DataError
from finetune.types import Draw


class Batch(TypedDict):
    """What a loader yields (B images of H x W x C).

    Keys:
        image: uint8, shape (B, H, W, C).
        label: int64, shape (B,); -1 where there is none.
        index: int64, shape (B,), rows of the dataset.
    """

    image: Tensor
    label: Tensor
    index: Tensor


class ImageDataset(Dataset[Batch]):
    """Decodes and transforms one image an item.

    Args:
        paths: Image files, shape (N,).
        labels: Class indices, shape (N,); None for images without labels.
        transform: From the decoded image to pixels of one size.
        max_pixels: Larger images are refused.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int] | None,
        transform: Transform,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.labels = torch.tensor([-1] * len(paths) if labels is None else list(labels))
        self.transform = transform
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int | Draw) -> Batch:
        """Return the image of a row, or of a draw with its augmentation.

        Raises:
            DataError: The file no longer reads as it did before epoch 0.
        """
        index = item.row if isinstance(item, Draw) else item
        path = Path(self.paths[index])
        try:
            image = decode_image(path, max_pixels=self.max_pixels)
        except DataError as error:
            raise DataError(
                f"{path}: {error}. It read well before training; restore it, then resume."
            ) from error
        pixels = self.transform(image, item if isinstance(item, Draw) else None)
        return Batch(
            image=torch.from_numpy(pixels), label=self.labels[index], index=torch.tensor(index)
        )


def create_loader(
    dataset: ImageDataset,
    *,
    batch_size: int,
    num_workers: int,
    sampler: Sampler[int] | Sampler[Draw] | None = None,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Return a loader over the sampler's order, or over all rows in order.

    Args:
        dataset: What is read.
        batch_size: Images a batch in this process.
        num_workers: Reading processes; 0 reads in this one.
        sampler: Yields rows or draws.
        pin_memory: For a fast copy to a GPU.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_prepare_worker,
    )


def _prepare_worker(worker: int) -> None:
    """Leave threads and signals to the main process."""
    del worker
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
