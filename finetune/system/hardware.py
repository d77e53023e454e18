"""Accelerators of this node, their free memory, and out-of-memory errors."""

import gc
from contextlib import AbstractContextManager, nullcontext

import torch

from finetune.errors import ConfigError
from finetune.system.allocator import keep_freed_memory, return_freed_memory
from finetune.system.host import get_free_host_memory


def resolve_accelerator(accelerator: str, *, setting: str = "trainer.accelerator") -> str:
    """Return "cpu", "cuda" or "mps" for a requested accelerator.

    Args:
        accelerator: One of these names, or "auto" for a GPU if one is available.
        setting: Option or config key named in the error message.

    Raises:
        ConfigError: The name is unknown, or this node has no such device.
    """
    has = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if accelerator == "auto":
        return "cuda" if has["cuda"] else "mps" if has["mps"] else "cpu"
    if accelerator not in has:
        raise ConfigError(f"{setting}={accelerator}: unknown device. Use auto, cpu, cuda or mps.")
    if not has[accelerator]:
        raise ConfigError(
            f"{setting}={accelerator}: no such device is available on this node. Use auto, or "
            f"check the driver."
        )
    return accelerator


def prepare_accelerator(accelerator: str, *, setting: str = "trainer.accelerator") -> str:
    """Return the device of ``resolve_accelerator``, and configure this process for the CPU.

    Args:
        accelerator: Name of a device, or "auto".
        setting: Option or config key named in the error message.

    Raises:
        ConfigError: The name is unknown, or this node has no such device.
    """
    device = resolve_accelerator(accelerator, setting=setting)
    if device == "cpu":
        keep_freed_memory()
    return device


def get_free_memory(accelerator: str) -> int | None:
    """Return the free memory of a device in bytes, or None if it is unknown.

    On the CPU, ``get_free_host_memory``.
    """
    if accelerator == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    if accelerator != "cpu":
        return None
    return get_free_host_memory()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the system ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in message or "ALLOC_FAILED" in message or "out of memory" in message
    )


def explain_out_of_memory(error: BaseException) -> str:
    """Return the first line of a library's out-of-memory error as one sentence."""
    reason = str(error).partition("\n")[0].rstrip(" .") or "the system has no memory left"
    return f"Out of memory: {reason}."


def get_process_device(accelerator: str, local_rank: int) -> torch.device:
    """Return the device of one of several local ranks."""
    return (
        torch.device(accelerator, local_rank)
        if accelerator == "cuda"
        else torch.device(accelerator)
    )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context manager that applies ``trainer.precision`` on a device."""
    if precision == "32-true":
        return nullcontext()
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    return torch.autocast(device.type, dtype)


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the default generator of a device, which dropout draws from.

    ``torch.manual_seed`` would seed all GPUs, and without GPUs it records a stack trace.
    """
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def release_memory() -> None:
    """Release the memory held by a failed step."""
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
