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

from finetune.data.images.source import PictureSource
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
        colour: float32, shape (B, C, C + 1), what happens to the colours on the device.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    colour: NotRequired[Tensor]


class ImageDataset(Dataset[Batch]):
    """Transforms pictures, a batch an item.

    Args:
        source: N pictures.
        labels: Class indices, shape (N,); None for images without labels.
        transform: From a picture to pixels of one size.
    """

    def __init__(
        self, source: PictureSource, labels: Sequence[int] | None, transform: Transform
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
        if "colour" in batch:
            alone["colour"] = batch["colour"][0]
        return alone

    def __getitems__(self, items: Sequence[int | Draw]) -> Batch:
        """Return the batch of some rows, or of some draws with their augmentation.

        Raises:
            DataError: A file no longer reads as it did before epoch 0.
        """
        rows = [item.row if isinstance(item, Draw) else item for item in items]
        views = [
            self._view(row, item if isinstance(item, Draw) else None)
            for row, item in zip(rows, items, strict=True)
        ]
        image = np.stack([view.pixels for view in views])
        index = torch.tensor(rows)
        batch = Batch(image=torch.from_numpy(image), label=self.labels[index], index=index)
        if self.transform.colours:
            colours = [view.colour for view in views if view.colour is not None]
            assert len(colours) == len(views), "a transform with colours gives each image some"
            batch["colour"] = torch.from_numpy(np.stack(colours))
        return batch

    def _view(self, row: int, draw: Draw | None) -> View:
        try:
            return self.transform(self.source.open(row), draw)
        except DataError as error:
            raise DataError(
                f"{self.source.name(row)}: {error}. It read well before training; restore it, then "
                f"resume."
            ) from error


def create_loader(
    dataset: ImageDataset,
    *,
    num_workers: int,
    batch_size: int = 1,
    sampler: Sampler[int] | Sampler[Draw] | None = None,
    batches: Sampler[list[int]] | None = None,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Return a loader over the sampler's order, or over all rows in order.

    Args:
        dataset: What is read.
        num_workers: Reading processes; 0 reads in this one.
        batch_size: Images a batch in this process, unless ``batches`` says it.
        sampler: Yields rows or draws.
        batches: Yields the rows of a batch, in the place of ``sampler``.
        pin_memory: For a fast copy to a GPU.
    """
    context = None
    if num_workers:
        atexit.register(_end_workers)
        context = multiprocessing.get_context(worker_start_method(beside_gpu=pin_memory))
        if context.get_start_method() == "forkserver":
            _start_fork_server(context)
    return DataLoader(
        dataset,
        batch_size=batch_size if batches is None else 1,
        sampler=sampler,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        collate_fn=_as_it_is,
        worker_init_fn=_prepare_worker,
        multiprocessing_context=context,
    )


def worker_start_method(*, beside_gpu: bool) -> str:
    """Return how reading processes start: "fork" where it is safe, else "forkserver" or "spawn".

    A fork copies the locks of CUDA's threads but not the threads, and from Python 3.12 on it warns
    in any process with threads. A fork server has neither, and is as fast once it has imported what
    the workers need. On macOS system libraries do not survive a fork at all.
    """
    if sys.platform != "linux":
        return "spawn"
    return "forkserver" if beside_gpu or sys.version_info >= (3, 12) else "fork"


@contextmanager
def lost_readers_explained() -> Iterator[None]:
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
    with signals.blocked():
        forkserver.ensure_running()


def _end_workers() -> None:
    """End the processes that still read when this one exits.

    Python asks them by a signal, which they leave to this process, and would wait for ever.
    """
    atexit.unregister(_end_workers)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _as_it_is(batch: Any) -> Any:
    """Return what the dataset has collated already."""
    return batch


def _prepare_worker(worker: int) -> None:
    """Leave threads and signals to the main process."""
    del worker
    cv2.setNumThreads(0)
    signals.ignore()
