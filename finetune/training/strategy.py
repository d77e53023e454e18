"""Strategies of the trainer: DDP, FSDP, or a single process."""

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
    """Return the ``strategy`` argument of Lightning's trainer.

    Args:
        name: "ddp" replicates the network in every process, "fsdp" shards it.
        accelerator: "cpu", "cuda" or "mps".
        num_processes: Number of processes on all nodes.
        timeout: Time limit of a collective.
        broadcast_buffers: Whether training changes buffers, such as BatchNorm statistics.
    """
    backend = "nccl" if accelerator == "cuda" else "gloo"
    if name == "fsdp":
        return FSDPStrategy(
            process_group_backend=backend,
            timeout=timeout,
            # autocast only, as under DDP: Lightning's default would also round buffers, such as
            # BatchNorm statistics, permanently
            mixed_precision=MixedPrecision(),
            # a single file that every tool reads, instead of a folder of shards
            state_dict_type="full",
            # only rank 0 has loaded the weights
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
    """DDP that broadcasts buffers before each forward pass only if training changes them.

    Args:
        broadcast_buffers: Whether training changes buffers, such as BatchNorm in training mode.
        ddp_kwargs: Arguments of ``DDPStrategy``.
    """

    def __init__(self, *, broadcast_buffers: bool, **ddp_kwargs: Any) -> None:
        super().__init__(**ddp_kwargs)
        self.broadcast_buffers = broadcast_buffers

    def configure_ddp(self) -> None:
        """Wrap the network, which broadcasts the parameters and buffers of rank 0 once."""
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self.model.broadcast_buffers = self.broadcast_buffers
