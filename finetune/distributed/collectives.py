"""Rows of all ranks, each once, in order."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(index: Tensor, *values: Tensor) -> list[Tensor]:
    """Return the rows of all ranks sorted by index, those that a sampler repeated only once.

    Args:
        index: Dataset rows of this rank, int64, shape (N,); may be empty.
        values: Tensors of shape (N, ...).

    Returns:
        ``index`` and ``values`` of all ranks, the same on every rank.
    """
    columns = [index, *values]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, [column.cpu() for column in columns])
        columns = [torch.cat(parts) for parts in zip(*gathered, strict=True)]
    unique, inverse = torch.unique(columns[0], return_inverse=True)
    first = torch.full((len(unique),), len(inverse), dtype=torch.int64)
    first.scatter_reduce_(0, inverse, torch.arange(len(inverse)), "amin")
    return [column[first] for column in columns]
