"""CPU cores and free memory of this host, within the limits of the process; imports no torch."""

import os
from pathlib import Path

from finetune.system.allocator import return_freed_memory

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_PROCESS_CGROUP_FILE = Path("/proc/self/cgroup")


def count_available_cores() -> int:
    """Return the number of CPU cores usable by this process (affinity and cgroup v2 quota)."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = [quota for group in _find_cgroups() if (quota := _read_cgroup_cores(group))]
    return min([cores, *quotas])


def get_free_host_memory() -> int | None:
    """Return the free memory of the CPU in bytes, or None if it is unknown.

    It is the minimum of the system's available memory and the remainder of the limits of the
    process's cgroups (v2). Freed memory that this process holds is returned first.
    """
    return_freed_memory()
    limits = [_read_available_memory(), *map(_read_cgroup_free_memory, _find_cgroups())]
    return min((limit for limit in limits if limit is not None), default=None)


def _read_available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 if kilobytes else None


def _find_cgroups() -> list[Path]:
    """Return the process's own cgroup and its ancestors; each may set a limit."""
    try:
        lines = _PROCESS_CGROUP_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    name = next((line[4:] for line in lines if line.startswith("0::/")), "")
    own = _CGROUP_ROOT / name
    return [group for group in (own, *own.parents) if group.is_relative_to(_CGROUP_ROOT)]


def _read_cgroup_cores(cgroup: Path) -> int | None:
    """Return the CPU quota of a cgroup in cores, rounded up; None without a limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


def _read_cgroup_free_memory(cgroup: Path) -> int | None:
    """Return the memory left below a cgroup's limit in bytes; None without a limit."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    # the page cache counts as used but is reclaimable: images that were read, by the gigabyte
    page_cache = [int(line.split()[1]) for line in lines if line.split()[0].endswith("active_file")]
    return None if limit == "max" else max(0, int(limit) - used + sum(page_cache))
