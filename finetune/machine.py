"""What this machine has, asked by training and by everything that only uses a model."""

import gc
import os
from pathlib import Path

import torch

from finetune.errors import ConfigError


def resolve_accelerator(asked: str, *, setting: str = "trainer.accelerator") -> str:
    """Return "cpu", "cuda" or "mps" for what was asked.

    Args:
        asked: One of them, or "auto" for a GPU where there is one.
        setting: The option or config key that asked, for the message.

    Raises:
        ConfigError: This machine has no such device.
    """
    has = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if asked == "auto":
        return "cuda" if has["cuda"] else "mps" if has["mps"] else "cpu"
    if not has[asked]:
        raise ConfigError(
            f"{setting}={asked}: this machine shows no such device. Leave it at auto, or check the "
            f"driver."
        )
    return asked


def free_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(accelerator: str) -> int | None:
    """Return the bytes that a process may still use on a device, or None where nothing tells.

    On the CPU it is what the system or the process's control group has left.
    """
    if accelerator == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    if accelerator != "cpu":
        return None
    found = [value for value in (_available(), _left_in_group()) if value is not None]
    return min(found, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a device, or the system, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in said or "out of memory" in said
    )


def release_memory() -> None:
    """Give back what a failed step held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 if kilobytes else None


def _left_in_group() -> int | None:
    """Return what a container's limit (cgroup v2) leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii")
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
