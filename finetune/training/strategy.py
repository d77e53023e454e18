"""How the processes of a run share the work: DDP, FSDP, or one alone."""

from datetime import timedelta
from typing import Any

from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from torch.distributed.fsdp import MixedPrecision
from torch.nn.parallel import DistributedDataParallel


def choose_strategy(
    name: str,
    *,
    accelerator: str,
    num_processes: int,
    timeout: timedelta,
    broadcast_buffers: bool = True,
) -> Any:
    """Return what Lightning's trainer takes as its strategy.

    Args:
        name: "ddp" copies the network to every process, "fsdp" cuts it into shards.
        accelerator: "cpu", "cuda" or "mps".
        num_processes: Of all machines.
        timeout: How long a process waits for another one.
        broadcast_buffers: Whether training changes buffers, such as BatchNorm's statistics.
    """
    backend = "nccl" if accelerator == "cuda" else "gloo"
    if name == "fsdp":
        return FSDPStrategy(
            process_group_backend=backend,
            timeout=timeout,
            # autocast alone, as under DDP: Lightning's own choice would round buffers for good,
            # such as BatchNorm's statistics
            mixed_precision=MixedPrecision(),
            # one file that every tool reads, in the place of a folder of shards
            state_dict_type="full",
            # the other ranks start from random weights
            sync_module_states=True,
        )
    if num_processes == 1:
        return "auto"
    return BufferAwareDDPStrategy(
        broadcast_buffers=broadcast_buffers,
        timeout=timeout,
        gradient_as_bucket_view=True,
        process_group_backend=backend,
    )


class BufferAwareDDPStrategy(DDPStrategy):
    """DDP that sends rank 0's buffers before each forward pass only where training changes them.

    Args:
        broadcast_buffers: Whether it does, as BatchNorm in training mode.
        more: As for ``DDPStrategy``.
    """

    def __init__(self, *, broadcast_buffers: bool, **ddp_kwargs: Any) -> None:
        super().__init__(**ddp_kwargs)
        self.broadcast_buffers = broadcast_buffers

    def configure_ddp(self) -> None:
        """Wrap the network; this sends parameters and buffers of rank 0 to all, once."""
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self.model.broadcast_buffers = self.broadcast_buffers
