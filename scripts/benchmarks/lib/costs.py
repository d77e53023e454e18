"""Wall, user and system time per image, and the table of contenders."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from scripts.benchmarks.lib import rounds


@dataclass(frozen=True)
class Cost:
    """Time per image, in milliseconds."""

    wall: float
    user: float
    system: float

    @property
    def cpu(self) -> float:
        """Sum of user and system time."""
        return self.user + self.system


Costs = dict[str, list[Cost]]  # one cost per round


def measure(work: Callable[[], int], *, min_seconds: float) -> Cost:
    """Return the cost per image of a function that returns its number of images.

    The function is repeated for at least ``min_seconds``.
    """
    before, start, images = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
    while time.perf_counter() - start < min_seconds:
        images += work()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    seconds = wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Cost(*(1000 * value / images for value in seconds))


def format_three_digits(value: float) -> str:
    """Return a number with three significant digits and at most three decimals."""
    decimals = 2 - int(np.floor(np.log10(max(value, 1e-9))))
    return f"{value:.{min(3, max(0, decimals))}f}"


format_spread = partial(rounds.format_spread, format_value=format_three_digits)


def print_costs(title: str, costs: Costs, *, notes: Mapping[str, str]) -> None:
    """Print the costs of each contender and the speed-up over the first one."""
    print(f"\n{title:25} {'wall':>6} {'user':>6} {'sys':>6}  {'x user':20}x user+sys")
    baseline = next(iter(costs.values()))
    for name, rows in costs.items():
        wall, user, system = (
            format_three_digits(statistics.median(values))
            for values in zip(*((row.wall, row.user, row.system) for row in rows), strict=True)
        )
        user_ratios = rounds.compute_ratios(
            [row.user for row in baseline], [row.user for row in rows]
        )
        cpu_ratios = rounds.compute_ratios([row.cpu for row in baseline], [row.cpu for row in rows])
        speed_ups = f"{format_spread(user_ratios):19} {format_spread(cpu_ratios):19}"
        times = f"{wall:>6} {user:>6} {system:>6} {speed_ups}"
        print(f"{name:25} {times} {notes.get(name, '')}".rstrip())
