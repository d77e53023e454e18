"""Clock of the process: the seconds since a command began, its imports included."""

import time

_starts: list[float] = []


def start_clock() -> None:
    """Start the clock; called once, by the entry point, before anything slow is imported."""
    _starts[:] = [time.monotonic()]


def measure_seconds() -> float | None:
    """Return the seconds since the clock was started; None in a process that has not started it."""
    return time.monotonic() - _starts[0] if _starts else None
