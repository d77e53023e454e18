"""Unfreeze schedules: how deep the network trains in an epoch, as pure functions.

``depth`` counts layer groups from the head: 1 trains the head alone, ``num_groups`` trains all.
Where a depth is given, a whole number counts groups and a fraction is that share of all groups, so
that one setting serves families with 5 groups and with 50.
"""

import math
from collections.abc import Callable, Mapping

from finetune.errors import ConfigError
from finetune.types import Phase

Depth = int | float


def train_all(epoch: int, num_groups: int) -> int:
    """Return all groups, from the first epoch on."""
    del epoch
    return num_groups


def linear_probe(epoch: int, num_groups: int) -> int:
    """Return the head alone, always."""
    del epoch, num_groups
    return 1


def head_first(epoch: int, num_groups: int, *, epochs: int = 1, depth: Depth = 1.0) -> int:
    """Return the head alone for some epochs, then ``depth`` (Kumar et al. 2022, LP-FT).

    https://arxiv.org/abs/2202.10054

    Args:
        epoch: Counted from 0.
        num_groups: Groups of the network.
        epochs: How long the head trains alone.
        depth: What trains after: groups, or a share of them.
    """
    return 1 if epoch < epochs else resolve_depth(depth, num_groups)


def gradual(
    epoch: int, num_groups: int, *, start: int = 1, every: int = 1, step: Depth = 0.25
) -> int:
    """Return one step deeper every few epochs (Howard and Ruder 2018, section 3.3).

    https://arxiv.org/abs/1801.06146

    Args:
        epoch: Counted from 0.
        num_groups: Groups of the network.
        start: Epochs that the head trains alone.
        every: Epochs between two steps.
        step: What a step adds: groups, or a share of them.

    Raises:
        ConfigError: ``every`` or ``step`` is not above 0.
    """
    if every < 1:
        raise ConfigError(f"unfreeze.params: every={every!r} must be 1 epoch or more.")
    resolve_depth(step, num_groups)  # refuses what is neither a number of groups nor a share
    if epoch < start:
        return 1
    steps = 1 + (epoch - start) // every
    added = steps * step if isinstance(step, int) else _count_groups(steps * step, num_groups)
    return min(num_groups, 1 + added)


def milestones(epoch: int, num_groups: int, *, depths: Mapping[int, Depth]) -> int:
    """Return the depth of the last milestone that was reached; before the first, the head alone.

    Args:
        epoch: Counted from 0.
        num_groups: Groups of the network.
        depths: First epoch to depth, as in ``{0: 1, 3: 0.5, 6: 1.0}``.

    Raises:
        ConfigError: It is no such mapping.
    """
    if not isinstance(depths, Mapping) or not all(str(first).isdigit() for first in depths):
        raise ConfigError(
            f"unfreeze.params: depths={depths!r} must give a depth for whole epochs from 0 on, as "
            f"in {{0: 1, 3: 0.5, 6: 1.0}}."
        )
    by_epoch = {int(first): resolve_depth(depth, num_groups) for first, depth in depths.items()}
    reached = [first for first in by_epoch if first <= epoch]
    return by_epoch[max(reached)] if reached else 1


UNFREEZE_SCHEDULES: Mapping[str, Callable[..., int]] = {
    "all": train_all,
    "linear_probe": linear_probe,
    "head_first": head_first,
    "gradual": gradual,
    "milestones": milestones,
}


def resolve_depth(depth: Depth, num_groups: int) -> int:
    """Return a number of groups in [1, num_groups] for a whole number or a share in (0, 1].

    Raises:
        ConfigError: The number is neither.
    """
    if isinstance(depth, bool) or not isinstance(depth, int | float) or depth <= 0:
        raise ConfigError(
            f"unfreeze.params: depth {depth!r} is neither a number of groups nor a share in (0, 1]."
        )
    if isinstance(depth, int):
        return min(depth, num_groups)
    if depth > 1:
        raise ConfigError(
            f"unfreeze.params: depth {depth} is over 1.0, which is all groups; whole numbers "
            f"count groups."
        )
    return max(1, _count_groups(depth, num_groups))


def _count_groups(fraction: float, num_groups: int) -> int:
    # 0.7 * 10 is a little over 7 in floating point, and must not become 8
    return math.ceil(round(fraction * num_groups, 9))


def compute_phases(depth_schedule: Callable[[int], int], *, num_epochs: int) -> tuple[Phase, ...]:
    """Return the runs of epochs with the same depth, in order.

    Args:
        depth_schedule: Epoch, counted from 0, to depth.
        num_epochs: Epochs of the run.
    """
    found: list[Phase] = []
    for epoch in range(num_epochs):
        depth = depth_schedule(epoch)
        if found and found[-1].depth == depth:
            found[-1] = Phase(found[-1].first_epoch, epoch, depth)
        else:
            found.append(Phase(epoch, epoch, depth))
    return tuple(found)
