"""Seconds in which this process could compute, also on a busy machine."""

import time

_WAITING_FACTOR = 3.0
"""Wall time that counts as one second at least, if other programs use the cores."""

Clocks = tuple[float, float]
"""Wall time and processor time in seconds."""


def read_clocks() -> Clocks:
    """Return the present times, for ``count_seconds``."""
    return time.monotonic(), time.process_time()


def count_seconds(start: Clocks) -> float:
    """Return the wall time since a start, without the time that other programs took.

    It is at least a third of the wall time, also where a GPU computes and this process waits.
    """
    wall, processor = (now - then for now, then in zip(read_clocks(), start, strict=True))
    return max(min(wall, processor), wall / _WAITING_FACTOR)
