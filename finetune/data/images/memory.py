"""Memory that threads reserve before they decode large images, so that they never exceed it."""

import os
import threading
import weakref

from finetune.system.host import get_free_host_memory

MIN_RESERVED_BYTES = 100_000_000
"""Images that need less are decoded without a reservation."""

_FRACTION = 0.6
_MAX_WAIT_SECONDS = 120.0
"""Longest wait for memory; a thread then decodes nevertheless."""


class MemoryBudget:
    """Bytes that threads of this process may use together for images.

    Args:
        limit_bytes: Limit; None takes a fraction of the memory that is free when none is in use.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._fixed_limit = limit_bytes
        self._condition = threading.Condition()
        self._used_bytes = 0
        self._limit_bytes = 0
        self._held = threading.local()

    def reserve(self, owner: object, num_bytes: int) -> None:
        """Wait until memory is free, and reserve it until an object is gone.

        A single image is never refused, and a thread that holds one already does not wait.

        Args:
            owner: Object whose end gives the memory back.
            num_bytes: Bytes that it needs.
        """
        if num_bytes < MIN_RESERVED_BYTES:
            return
        with self._condition:
            if self._used_bytes == 0:
                self._limit_bytes = self._measure_limit()
            if not self._count_held():
                self._condition.wait_for(lambda: self._fits(num_bytes), _MAX_WAIT_SECONDS)
            self._used_bytes += num_bytes
            held = self._held.__dict__
            held["count"] = held.get("count", 0) + 1
        weakref.finalize(owner, self._release, num_bytes, held, os.getpid())

    def _count_held(self) -> int:
        return int(self._held.__dict__.get("count", 0))

    def _fits(self, num_bytes: int) -> bool:
        return self._used_bytes == 0 or self._used_bytes + num_bytes <= self._limit_bytes

    def _release(self, num_bytes: int, held: dict[str, int], process: int) -> None:
        if os.getpid() != process:
            return  # reserved before a fork, after which the budget of the new process is empty
        with self._condition:
            held["count"] -= 1
            self._used_bytes -= num_bytes
            self._condition.notify_all()

    def _measure_limit(self) -> int:
        if self._fixed_limit is not None:
            return self._fixed_limit
        free = get_free_host_memory()
        return 1 << 62 if free is None else int(_FRACTION * free)


BUDGET = MemoryBudget()
"""Budget of all threads of this process."""


def _reset_after_fork() -> None:
    BUDGET.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_reset_after_fork)
