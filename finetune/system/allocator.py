"""glibc's memory allocator: whether it keeps freed memory for reuse or returns it to the system."""

import ctypes
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import Protocol

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt``, from glibc's ``malloc.h``."""

_NEVER = -1
_MAX_HEAP_BLOCK_BYTES = 2**30
"""Larger blocks still have a memory map of their own, which is returned when they are freed."""

_OLD_MAX_HEAP_BLOCK_BYTES = 32 * 2**20
"""Largest value that older releases of glibc accept."""

_VARIABLES = (
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TOP_PAD_",
)
_TUNABLES = ("mmap_threshold", "trim_threshold", "mmap_max", "top_pad")


class Glibc(Protocol):
    """Functions of glibc that this module calls."""

    def mallopt(self, parameter: int, value: int, /) -> int:
        """Set a parameter of the allocator; return 0 if it is rejected."""

    def malloc_trim(self, pad: int, /) -> int:
        """Return free memory to the system."""


def keep_freed_memory(
    environment: Mapping[str, str] | None = None, libc: Glibc | None = None
) -> bool:
    """Let the allocator keep freed memory for reuse in this process, and return whether it does.

    By default glibc returns each block of more than 32 MiB to the system when it is freed, so that
    every training step on a CPU gets its activations as new pages, which the kernel must clear.
    Peak memory grows by the gaps between the blocks that are in use.

    Nothing changes without glibc, or if the user has set one of glibc's own variables for it.

    Args:
        environment: Environment variables; None takes those of the process.
        libc: C library; None takes that of the process.
    """
    environment = os.environ if environment is None else environment
    libc = _load_glibc() if libc is None else libc
    if libc is None or _is_set_by_user(environment):
        return False
    is_accepted = any(
        libc.mallopt(_M_MMAP_THRESHOLD, size)
        for size in (_MAX_HEAP_BLOCK_BYTES, _OLD_MAX_HEAP_BLOCK_BYTES)
    )
    return bool(is_accepted and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))


def return_freed_memory(libc: Glibc | None = None) -> None:
    """Return the freed memory that the allocator holds to the system.

    Args:
        libc: C library; None takes that of the process.
    """
    libc = _load_glibc() if libc is None else libc
    if libc is not None:
        libc.malloc_trim(0)


def _is_set_by_user(environment: Mapping[str, str]) -> bool:
    """Return whether a variable of glibc sets one of the thresholds, or a related parameter."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    return any(name in environment for name in _VARIABLES) or any(
        f"glibc.malloc.{name}=" in tunables for name in _TUNABLES
    )


@cache
def _load_glibc() -> Glibc | None:
    """Return the C library of this process if it is glibc."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    names = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return library if all(hasattr(library, name) for name in names) else None
