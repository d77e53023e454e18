"""Process group and collectives: gathered rows, checksums, stop requests, asynchronous maximum."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import Store

from finetune.distributed import signals
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.signals import StopRequest
from finetune.errors import TrainingError


@contextmanager
def init_process_group(
    launch: LaunchInfo, store: Store, *, backend: str, timeout: timedelta
) -> Iterator[None]:
    """Initialise the default process group for the block.

    Args:
        launch: Rank of this process and size of the run.
        store: Store that all ranks reach, without keys of another group.
        backend: "gloo" or "nccl".
        timeout: Time limit of a collective.
    """
    if backend == "nccl":  # its collectives use the current device
        torch.cuda.set_device(launch.local_rank)
    dist.init_process_group(
        backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout
    )
    try:
        yield
    except BaseException as error:
        # after a stop request all ranks are here; otherwise NCCL could wait for lost ranks
        if backend == "gloo" or isinstance(error, StopRequest):
            dist.destroy_process_group()
        raise
    # gloo aborts the process if the group still exists at the interpreter's exit
    dist.destroy_process_group()


def gather_rows(index: Tensor, *values: Tensor) -> list[Tensor]:
    """Gather the rows of all ranks, sorted by index and without the sampler's repetitions.

    Of a repeated row the first one, in the order of ranks, is kept.

    Args:
        index: Dataset rows of this rank, int64, shape (N,); may be empty.
        values: Tensors of shape (N, ...).

    Returns:
        ``index`` and ``values`` of all ranks, equal on every rank, on the CPU if there are several.
    """
    columns = [index, *values]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, [column.cpu() for column in columns])
        columns = [torch.cat(shards) for shards in zip(*gathered, strict=True)]
    unique, inverse = torch.unique(columns[0], return_inverse=True)
    first = torch.full((len(unique),), len(inverse), dtype=torch.int64)
    first.scatter_reduce_(0, inverse, torch.arange(len(inverse)), "amin")
    return [column[first] for column in columns]


def check_same_on_all_ranks(named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Check that all ranks hold bit-identical tensors, by their checksums; every rank calls this.

    Args:
        named_tensors: Names and tensors, in the same order on every rank.

    Raises:
        TrainingError: Tensors differ; raised on every rank, with the name of the first one.
    """
    names, tensors = zip(*named_tensors, strict=True)
    own = torch.stack([compute_checksum(tensor) for tensor in tensors])
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    checksums = torch.stack(gathered)  # (ranks, tensors)
    differs = (checksums != checksums[0]).any(dim=0).tolist()
    if any(differs):
        first = differs.index(True)
        ranks = (checksums[:, first] != checksums[0, first]).nonzero().flatten().tolist()
        raise TrainingError(
            f"The weights of the ranks have diverged: {names[first]} ({sum(differs)} of "
            f"{len(names)} tensors) differs between rank 0 and "
            f"{', '.join(f'rank {rank}' for rank in ranks)}. Custom code that changes weights on "
            f"one rank only causes this, and so does faulty hardware. Resume from the previous "
            f"checkpoint with --resume, and report it if it happens again."
        )


def compute_checksum(tensor: Tensor) -> Tensor:
    """Compute the sum of a tensor's bits, viewed as integers, on its own device; int64 scalar."""
    dtype = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(dtype).sum(dtype=torch.int64)


def sync_stop_request() -> None:
    """Raise on all ranks if any rank has recorded a stop signal; every rank calls this.

    Raises:
        StopRequest: With the most urgent signal of all ranks.
    """
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    signum = torch.tensor([signals.get_pending_signal()], device=device)
    dist.all_reduce(signum, dist.ReduceOp.MAX)
    if int(signum):
        raise StopRequest(int(signum))


class AsyncMaxReducer:
    """Maximum over the ranks without waiting: each call returns the result of the call before.

    The values are reduced while the next step is computed, by gloo even if gradients use NCCL,
    which would make the GPU wait.

    Args:
        timeout: Time limit for the values of another rank.
    """

    def __init__(self, timeout: timedelta) -> None:
        group = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(group, dist.ProcessGroup), "every rank belongs to it"
        self._group = group
        self._pending: tuple[Any, Tensor] | None = None

    def reduce(self, *values: int) -> tuple[int, ...]:
        """Start to reduce values and return the maxima of the previous call, at first zeros.

        Every rank calls this equally often.
        """
        previous = self.wait() or (0,) * len(values)
        tensor = torch.tensor(values)
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, self._group, async_op=True)
        self._pending = work, tensor
        return previous

    def wait(self) -> tuple[int, ...] | None:
        """Wait for the pending all-reduce and return its maxima, or None if there is none."""
        if self._pending is None:
            return None
        work, tensor = self._pending
        self._pending = None
        work.wait()
        return tuple(tensor.tolist())


def broadcast_weights(module: nn.Module) -> None:
    """Send the parameters and buffers of rank 0, which alone has read the weights, to all ranks."""
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, src=0)
