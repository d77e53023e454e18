"""What this machine has, asked by training and by everything that only uses a model."""

import gc
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from finetune.errors import ConfigError

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_PROCESS_CGROUP_FILE = Path("/proc/self/cgroup")


def resolve_accelerator(accelerator: str, *, setting: str = "trainer.accelerator") -> str:
    """Return "cpu", "cuda" or "mps" for what was asked.

    Args:
        accelerator: One of them, or "auto" for a GPU where there is one.
        setting: The option or config key that asked, for the message.

    Raises:
        ConfigError: This machine has no such device.
    """
    has = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if accelerator == "auto":
        return "cuda" if has["cuda"] else "mps" if has["mps"] else "cpu"
    if not has[accelerator]:
        raise ConfigError(
            f"{setting}={accelerator}: this machine shows no such device. Leave it at auto, or check the "
            f"driver."
        )
    return accelerator


def count_available_cores() -> int:
    """Return the cores that this process may use, and its control groups (v2) grant."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    granted = [share for group in _find_cgroups() if (share := _read_cgroup_cores(group))]
    return min([cores, *granted])


def get_free_memory(accelerator: str) -> int | None:
    """Return the bytes that a process may still use on a device, or None where nothing tells.

    On the CPU it is what the system or the process's control groups (v2) have left.
    """
    if accelerator == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    if accelerator != "cpu":
        return None
    found = [_read_available_memory(), *map(_read_cgroup_free_memory, _find_cgroups())]
    return min((value for value in found if value is not None), default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a device, or the system, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in said or "ALLOC_FAILED" in said or "out of memory" in said
    )


def explain_out_of_memory(error: BaseException) -> str:
    """Return what a library said of it, as one sentence."""
    reason = str(error).partition("\n")[0].rstrip(" .") or "the system has none left"
    return f"Out of memory: {reason}."


def get_process_device(accelerator: str, local_rank: int) -> torch.device:
    """Return the device of a process of several on one machine."""
    return (
        torch.device(accelerator, local_rank)
        if accelerator == "cuda"
        else torch.device(accelerator)
    )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the block in which a network computes as ``trainer.precision`` says."""
    if precision == "32-true":
        return nullcontext()
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    return torch.autocast(device.type, dtype)


def seed_device(device: torch.device, seed: int) -> None:
    """Set the state of the generator that dropout on a device draws from.

    ``torch.manual_seed`` would seed all GPUs, and where there are none it notes down the stack.
    """
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def release_memory() -> None:
    """Give back what a failed step held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _read_available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 if kilobytes else None


def _find_cgroups() -> list[Path]:
    """Return the process's own control group and those around it; each may set a limit."""
    try:
        lines = _PROCESS_CGROUP_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    name = next((line[4:] for line in lines if line.startswith("0::/")), "")
    own = _CGROUP_ROOT / name
    return [group for group in (own, *own.parents) if group.is_relative_to(_CGROUP_ROOT)]


def _read_cgroup_cores(cgroup: Path) -> int | None:
    """Return the cores that a control group's share of time comes to; None without a limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


def _read_cgroup_free_memory(cgroup: Path) -> int | None:
    """Return what a control group's limit leaves; None without one."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    # files that were read stay in memory until somebody needs it: images by the gigabyte
    files = [int(line.split()[1]) for line in lines if line.split()[0].endswith("active_file")]
    return None if limit == "max" else max(0, int(limit) - used + sum(files))
