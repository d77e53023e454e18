"""What this machine has, asked by training and by everything that only uses a model."""

import gc
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from finetune.errors import ConfigError

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


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
    """Return the cores that this process may use, and its control groups (v2) grant."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    granted = [share for group in _control_groups() if (share := _granted_cores(group))]
    return min([cores, *granted])


def free_memory(accelerator: str) -> int | None:
    """Return the bytes that a process may still use on a device, or None where nothing tells.

    On the CPU it is what the system or the process's control groups (v2) have left.
    """
    if accelerator == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    if accelerator != "cpu":
        return None
    found = [_available(), *map(_left_in_group, _control_groups())]
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


def process_device(accelerator: str, local_rank: int) -> torch.device:
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


def seed_device(device: torch.device, key: int) -> None:
    """Set the state of the generator that dropout on a device draws from.

    ``torch.manual_seed`` would seed all GPUs, and where there are none it notes down the stack.
    """
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(key)
    elif device.type == "mps":
        torch.mps.manual_seed(key)
    else:
        torch.default_generator.manual_seed(key)


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


def _control_groups() -> list[Path]:
    """Return the process's own control group and those around it; each may set a limit."""
    try:
        lines = _OWN_GROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    name = next((line[4:] for line in lines if line.startswith("0::/")), "")
    own = _GROUPS / name
    return [group for group in (own, *own.parents) if group.is_relative_to(_GROUPS)]


def _granted_cores(group: Path) -> int | None:
    """Return the cores that a control group's share of time comes to; None without a limit."""
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


def _left_in_group(group: Path) -> int | None:
    """Return what a control group's limit leaves; None without one."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    # files that were read stay in memory until somebody needs it: images by the gigabyte
    files = [int(line.split()[1]) for line in lines if line.split()[0].endswith("active_file")]
    return None if limit == "max" else max(0, int(limit) - used + sum(files))
