"""Outputs of the network for the images of a validation, collected over its batches and ranks."""

import torch
from torch import Tensor

from finetune.distributed.collectives import gather_rows

_MAX_BUFFERED_BATCHES = 32
"""Batches of outputs collected on the device before they are copied to the CPU."""


class ValidationOutputs:
    """Rows, targets and outputs of the images that one rank has validated."""

    def __init__(self) -> None:
        self._device_batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._cpu_batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, rows: Tensor, targets: Tensor, outputs: Tensor) -> None:
        """Add a batch.

        Args:
            rows: Rows of the dataset, shape (B,).
            targets: Class indices, shape (B,), or 1 for each label, shape (B, K).
            outputs: What metrics are computed from, shape (B, K).
        """
        self._device_batches.append((rows, targets, outputs))
        # each copy from a GPU waits until it is complete, so that batches are copied together
        if len(self._device_batches) == _MAX_BUFFERED_BATCHES:
            self._move_to_cpu()

    def gather(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, targets and outputs of all ranks, each image once, and forget them."""
        self._move_to_cpu()
        columns = zip(*self._cpu_batches, strict=True)
        rows, targets, outputs = (torch.cat(column) for column in columns)
        self._cpu_batches.clear()
        rows, targets, outputs = gather_rows(rows, targets, outputs)
        return rows, targets, outputs

    def _move_to_cpu(self) -> None:
        if self._device_batches:
            columns = zip(*self._device_batches, strict=True)
            rows, targets, outputs = (torch.cat(column).cpu() for column in columns)
            self._cpu_batches.append((rows, targets, outputs))
            self._device_batches.clear()
