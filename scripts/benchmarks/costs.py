"""What an image costs: wall, user and system time, and the table of contenders."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import rounds


@dataclass(frozen=True)
class Cost:
    """What one image took, in milliseconds."""

    wall: float
    user: float
    system: float

    @property
    def cpu(self) -> float:
        """User and system time together."""
        return self.user + self.system


Costs = dict[str, list[Cost]]  # one a round


def measure(work: Callable[[], int], *, least_seconds: float) -> Cost:
    """Return the cost per image of work that returns their number, repeated if it is short."""
    before, start, images = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
    while time.perf_counter() - start < least_seconds:
        images += work()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    seconds = wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Cost(*(1000 * value / images for value in seconds))


def three_digits(value: float) -> str:
    """Return a number with three digits that matter, and at most three decimals."""
    decimals = 2 - int(np.floor(np.log10(max(value, 1e-9))))
    return f"{value:.{min(3, max(0, decimals))}f}"


spread = partial(rounds.spread, figure=three_digits)


def print_costs(title: str, costs: Costs, *, notes: Mapping[str, str]) -> None:
    """Print what each contender took, and how many times less than the first one."""
    print(f"\n{title:25} {'wall':>6} {'user':>6} {'sys':>6}  {'x user':20}x user+sys")
    baseline = next(iter(costs.values()))
    for name, rows in costs.items():
        wall, user, system = (
            three_digits(statistics.median(values))
            for values in zip(*((row.wall, row.user, row.system) for row in rows), strict=True)
        )
        on_user = rounds.ratios([row.user for row in baseline], [row.user for row in rows])
        on_cpu = rounds.ratios([row.cpu for row in baseline], [row.cpu for row in rows])
        times = f"{wall:>6} {user:>6} {system:>6} {spread(on_user):19} {spread(on_cpu):19}"
        print(f"{name:25} {times} {notes.get(name, '')}".rstrip())
