"""Images as batches of uint8 pixels, with the row that each came from."""

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
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.data.images.source import ImageSource
from finetune.data.transforms.eval_transform import Transform, View
from finetune.distributed import signals
from finetune.errors import DataError, TrainingError
from finetune.types import Draw


class Batch(TypedDict):
    """What a loader yields (B images of H x W x C).

    Keys:
        image: uint8, shape (B, H, W, C).
        label: int64, shape (B,); -1 where there is none.
        index: int64, shape (B,), rows of the dataset.
        color_matrix: float32, shape (B, C, C + 1), applied on the device.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    color_matrix: NotRequired[Tensor]


class ImageDataset(Dataset[Batch]):
    """Transforms pictures, a batch an item.

    Args:
        source: N pictures.
        labels: Class indices, shape (N,); None for images without labels.
        transform: From a picture to pixels of one size.
    """

    def __init__(
        self, source: ImageSource, labels: Sequence[int] | None, transform: Transform
    ) -> None:
        self.source = source
        self.labels = torch.tensor([-1] * len(source) if labels is None else list(labels))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: int | Draw) -> Batch:
        """Return one row or draw, without the batch's dimension."""
        batch = self.__getitems__([item])
        alone = Batch(image=batch["image"][0], label=batch["label"][0], index=batch["index"][0])
        if "color_matrix" in batch:
            alone["color_matrix"] = batch["color_matrix"][0]
        return alone

    def __getitems__(self, items: Sequence[int | Draw]) -> Batch:
        """Return the batch of some rows, or of some draws with their augmentation.

        Raises:
            DataError: A file no longer reads as it did before epoch 0.
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
                "a transform with color matrices gives one to each image"
            )
            batch["color_matrix"] = torch.from_numpy(np.stack(color_matrices))
        return batch

    def _load_view(self, row: int, draw: Draw | None) -> View:
        try:
            return self.transform(self.source.open(row), draw)
        except DataError as error:
            raise DataError(
                f"{self.source.get_name(row)}: {error}. It read well before training; restore it, then "
                f"resume."
            ) from error


def create_loader(
    dataset: ImageDataset,
    *,
    num_workers: int,
    batch_size: int = 1,
    sampler: Sampler[int] | Sampler[Draw] | None = None,
    batch_sampler: Sampler[list[int]] | None = None,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Return a loader over the sampler's order, or over all rows in order.

    Args:
        dataset: What is read.
        num_workers: Reading processes; 0 reads in this one.
        batch_size: Images a batch in this process, unless ``batch_sampler`` says it.
        sampler: Yields rows or draws.
        batch_sampler: Yields the rows of a batch, in the place of ``sampler``.
        pin_memory: For a fast copy to a GPU.
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
    """Return how reading processes start: "fork" where it is safe, else "forkserver" or "spawn".

    A fork copies the locks of CUDA's threads but not the threads, and from Python 3.12 on it warns
    in any process with threads. A fork server has neither, and is as fast once it has imported what
    the workers need. On macOS system libraries do not survive a fork at all.
    """
    if sys.platform != "linux":
        return "spawn"
    return "forkserver" if uses_gpu or sys.version_info >= (3, 12) else "fork"


@contextmanager
def translate_worker_errors() -> Iterator[None]:
    """Say in words that a reading process was killed.

    Raises:
        TrainingError: It was, and what to do about it.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        said = str(error).rstrip(" .")
        raise TrainingError(
            f"A process that reads images ended: {said}. Most often the machine, the job or shared "
            f"memory (/dev/shm) ran out: lower data.num_workers; 0 reads without further processes."
        ) from error


def _start_fork_server(context: BaseContext) -> None:
    """Start what the workers are forked from, out of reach of the signals that stop a run."""
    context.set_forkserver_preload([__name__])  # imported once, and not by every worker
    with signals.block():
        forkserver.ensure_running()


def _kill_workers() -> None:
    """End the processes that still read when this one exits.

    Python asks them by a signal, which they leave to this process, and would wait for ever.
    """
    atexit.unregister(_kill_workers)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _skip_collate(batch: Any) -> Any:
    """Return what the dataset has collated already."""
    return batch


def _init_worker(worker_id: int) -> None:
    """Leave threads and signals to the main process."""
    del worker_id
    cv2.setNumThreads(0)
    signals.ignore()
