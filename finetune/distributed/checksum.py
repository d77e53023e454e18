"""Whether all ranks hold the same weights, bit for bit."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from finetune.errors import TrainingError


def check_same_on_all_ranks(named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Compare checksums of parameters and buffers over the ranks; all of them call this.

    Args:
        named_tensors: Names and tensors, in the same order on every rank.

    Raises:
        TrainingError: On every rank, with the first tensor that differs.
    """
    names, tensors = zip(*named_tensors, strict=True)
    own = torch.stack([compute_checksum(tensor) for tensor in tensors])
    of_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(of_ranks, own)
    sums = torch.stack(of_ranks)  # (ranks, tensors)
    differs = (sums != sums[0]).any(dim=0).tolist()
    if any(differs):
        first = differs.index(True)
        ranks = (sums[:, first] != sums[0, first]).nonzero().flatten().tolist()
        raise TrainingError(
            f"The processes have drifted apart: {names[first]} ({sum(differs)} of {len(names)} "
            f"tensors) differs between rank 0 and {', '.join(f'rank {rank}' for rank in ranks)}. "
            f"Code of your own that acts on one rank alone does this, and so does a failing "
            f"machine. Go on from the checkpoint before with --resume, and report it if it comes "
            f"again."
        )


def compute_checksum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's bits, read as whole numbers, on its own device; int64."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(kind).sum(dtype=torch.int64)
