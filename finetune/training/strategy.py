"""How the processes of a run share the work: DDP, FSDP, or one alone."""

from datetime import timedelta
from typing import Any

from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy


def choose_strategy(name: str, *, accelerator: str, num_processes: int, timeout: timedelta) -> Any:
    """Return what Lightning's trainer takes as its strategy.

    Args:
        name: "ddp" copies the network to every process, "fsdp" cuts it into shards.
        accelerator: "cpu", "cuda" or "mps".
        num_processes: Of all machines.
        timeout: How long a process waits for another one.
    """
    backend = "nccl" if accelerator == "cuda" else "gloo"
    if name == "fsdp":
        return FSDPStrategy(
            process_group_backend=backend,
            timeout=timeout,
            # one file that every tool reads, in the place of a folder of shards
            state_dict_type="full",
            # the other ranks start from random weights
            sync_module_states=True,
        )
    if num_processes == 1:
        return "auto"
    return DDPStrategy(timeout=timeout, gradient_as_bucket_view=True, process_group_backend=backend)
