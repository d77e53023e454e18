"""Dataset and loaders of image batches: uint8 pixels with labels and dataset rows."""

import atexit
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any, NotRequired, TypedDict

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.data.images.source import ImageSource
from finetune.data.transforms.eval_transform import Transform, View
from finetune.distributed import signals
from finetune.errors import DataError, TrainingError
from finetune.types import Draw


class Batch(TypedDict):
    """Batch of a loader (B images of H x W x C).

    Keys:
        image: Pixels, uint8 or uint16, shape (B, H, W, C).
        label: Class indices, int64, shape (B,); -1 without labels. Of multi-label images 1 for each
            label, float32, shape (B, K).
        index: Rows of the dataset, int64, shape (B,).
        color_matrix: Color matrices to apply on the device, float32, shape (B, C, C + 1).
        reasons: Reasons of the rows that cannot be read, whose pixels are zero.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    color_matrix: NotRequired[Tensor]
    reasons: NotRequired[dict[int, str]]


class ImageDataset(Dataset[Batch]):
    """Dataset of transformed images; ``__getitems__`` returns a whole batch.

    Args:
        source: Source of N images.
        labels: Class indices, shape (N,), or 1 for each label of multi-label images, float32, shape
            (N, K); None for images without labels.
        transform: Transform from an image to pixels of one size.
    """

    def __init__(
        self,
        source: ImageSource,
        labels: Sequence[int] | NDArray[Any] | Tensor | None,
        transform: Transform,
    ) -> None:
        self.source = source
        self.labels = torch.as_tensor([-1] * len(source) if labels is None else labels)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: int | Draw) -> Batch:
        """Return the sample of a row or draw, without a batch dimension."""
        batch = self.__getitems__([item])
        sample = Batch(image=batch["image"][0], label=batch["label"][0], index=batch["index"][0])
        if "color_matrix" in batch:
            sample["color_matrix"] = batch["color_matrix"][0]
        return sample

    def __getitems__(self, items: Sequence[int | Draw]) -> Batch:
        """Return the batch of rows, or of draws with their augmentation.

        Raises:
            DataError: A file can no longer be read.
        """
        rows = [item.row if isinstance(item, Draw) else item for item in items]
        views = [
            self._load_view(row, item if isinstance(item, Draw) else None)
            for row, item in zip(rows, items, strict=True)
        ]
        image = np.stack([view.pixels for view in views])
        index = torch.tensor(rows)
        batch = Batch(image=torch.from_numpy(image), label=self.labels[index], index=index)
        if self.transform.has_color_matrix:
            color_matrices = [view.color_matrix for view in views if view.color_matrix is not None]
            assert len(color_matrices) == len(views), (
                "a transform with has_color_matrix must return a matrix for every image"
            )
            batch["color_matrix"] = torch.from_numpy(np.stack(color_matrices))
        return batch

    def _load_view(self, row: int, draw: Draw | None) -> View:
        try:
            return load_view(self.source, row, self.transform, draw)
        except DataError as error:
            raise DataError(
                f"{self.source.get_name(row)}: {error}. It was readable before training; restore "
                f"it, then resume."
            ) from error


class JoinedDataset(Dataset[Batch]):
    """Dataset of the images of one dataset followed by those of another.

    A batch has images of one of them only.

    Args:
        first: Images in the first rows.
        second: Images in the rows after them.
    """

    def __init__(self, first: ImageDataset, second: ImageDataset) -> None:
        self.first = first
        self.second = second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Return the batch of rows; its indices are rows of this dataset.

        Raises:
            DataError: A file can no longer be read.
        """
        start = len(self.first)
        if max(rows) < start:
            return self.first.__getitems__(rows)
        batch = self.second.__getitems__([row - start for row in rows])
        batch["index"] += start
        return batch


class ReadableDataset(ImageDataset):
    """Dataset without labels and draws that does not stop at a file that cannot be read.

    Its batches name the rows of such files.

    Attributes:
        num_channels: Channels of the pixels.
    """

    num_channels = 3

    def __getitems__(self, items: Sequence[int | Draw]) -> Batch:
        """Return the batch of rows; those that cannot be read are black, with their reasons."""
        reasons: dict[int, str] = {}
        rows = [item.row if isinstance(item, Draw) else item for item in items]
        loaded: list[NDArray[Any] | None] = []
        for row in rows:
            try:
                loaded.append(load_view(self.source, row, self.transform, None).pixels)
            except DataError as error:
                loaded.append(None)
                reasons[row] = str(error)
        shape = (*self.transform.get_size(0), self.num_channels)
        black = next((np.zeros_like(p) for p in loaded if p is not None), np.zeros(shape, np.uint8))
        image = np.stack([black if pixels is None else pixels for pixels in loaded])
        index = torch.tensor(rows)
        return Batch(
            image=torch.from_numpy(image), label=self.labels[index], index=index, reasons=reasons
        )


def load_view(source: ImageSource, row: int, transform: Transform, draw: Draw | None) -> View:
    """Return the view of the image in a row.

    Raises:
        DataError: The file cannot be read, or the transform needs more memory than there is; the
            message is the reason without the path.
    """
    try:
        return transform(source.open(row), draw)
    except MemoryError as error:
        raise DataError("too large: there is not enough memory to resize it") from error
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
        raise DataError("too large: there is not enough memory to resize it") from error


def create_loader(
    dataset: ImageDataset | JoinedDataset,
    *,
    num_workers: int,
    batch_size: int = 1,
    sampler: Sampler[int] | Sampler[Draw] | None = None,
    batch_sampler: Sampler[list[int]] | None = None,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Return a loader in the order of a sampler, or over all rows in order.

    Args:
        dataset: Dataset to read.
        num_workers: Number of worker processes; 0 reads in this process.
        batch_size: Images per batch in this process; ignored with ``batch_sampler``.
        sampler: Sampler of rows or draws.
        batch_sampler: Sampler of the rows of a batch, instead of ``sampler``.
        pin_memory: Whether to pin memory for a fast copy to a GPU.
    """
    context = None
    if num_workers:
        atexit.register(_kill_workers)
        context = multiprocessing.get_context(choose_worker_start_method(uses_gpu=pin_memory))
        if context.get_start_method() == "forkserver":
            _start_fork_server(context)
    return DataLoader(
        dataset,
        batch_size=batch_size if batch_sampler is None else 1,
        sampler=sampler,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        collate_fn=_skip_collate,
        worker_init_fn=_init_worker,
        multiprocessing_context=context,
    )


def choose_worker_start_method(*, uses_gpu: bool) -> str:
    """Return the start method of workers: "fork" where it is safe, else "forkserver" or "spawn".

    A fork copies the locks of CUDA's threads but not the threads, and from Python 3.12 on it warns
    in any process with threads. A fork server has neither problem, and is as fast once it has
    imported what the workers need. On macOS, system libraries do not survive a fork.
    """
    if sys.platform != "linux":
        return "spawn"
    return "forkserver" if uses_gpu or sys.version_info >= (3, 12) else "fork"


@contextmanager
def translate_worker_errors() -> Iterator[None]:
    """Translate torch's error about a killed worker into one with a remedy.

    Raises:
        TrainingError: A worker process was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        reason = str(error).rstrip(" .")
        raise TrainingError(
            f"A data loading process ended: {reason}. Usually the memory of the node or job, or "
            f"the shared memory (/dev/shm), is exhausted: lower data.num_workers; 0 loads images "
            f"in the main process."
        ) from error


def _start_fork_server(context: BaseContext) -> None:
    """Start the fork server with the signals that stop a run blocked."""
    context.set_forkserver_preload([__name__])  # imported once, not by every worker
    with signals.block():
        forkserver.ensure_running()


def _kill_workers() -> None:
    """Kill the workers that are still running when this process exits.

    Python terminates them by SIGTERM, which they ignore, and would wait forever.
    """
    atexit.unregister(_kill_workers)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _skip_collate(batch: Any) -> Any:
    """Return the batch as the dataset has collated it."""
    return batch


def _init_worker(worker_id: int) -> None:
    """Disable OpenCV's threads and ignore signals, which the main process handles."""
    del worker_id
    cv2.setNumThreads(0)
    signals.ignore()
