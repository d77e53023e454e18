"""Unfreeze schedules: the trainable depth of the network as a pure function of the epoch.

``depth`` counts layer groups from the head: 1 trains the head alone, ``num_groups`` trains all. As
a parameter of a schedule, an integer is a number of groups and a float is a fraction of all groups,
so that one setting suits families with 5 groups and with 50.
"""

import math
from collections.abc import Callable, Mapping

from finetune.errors import ConfigError
from finetune.types import Phase
from finetune.units import format_value, format_yaml_value

Depth = int | float


def train_all(epoch: int, num_groups: int) -> int:
    """Return all groups from the first epoch on."""
    del epoch
    return num_groups


def linear_probe(epoch: int, num_groups: int) -> int:
    """Return the depth of the head alone in every epoch."""
    del epoch, num_groups
    return 1


def head_first(epoch: int, num_groups: int, *, epochs: int = 1, depth: Depth = 1.0) -> int:
    """Return the depth of the head alone at first, then ``depth`` (Kumar et al. 2022, LP-FT).

    https://arxiv.org/abs/2202.10054

    Args:
        epoch: Epoch, counted from 0.
        num_groups: Number of layer groups of the network.
        epochs: Number of epochs in which the head trains alone.
        depth: Depth afterwards: a number of groups, or a fraction of all groups.
    """
    return 1 if epoch < epochs else resolve_depth(depth, num_groups)


def gradual(
    epoch: int, num_groups: int, *, start: int = 1, every: int = 1, step: Depth = 0.25
) -> int:
    """Return a depth that grows by one step every few epochs (Howard and Ruder 2018, section 3.3).

    https://arxiv.org/abs/1801.06146

    Args:
        epoch: Epoch, counted from 0.
        num_groups: Number of layer groups of the network.
        start: Number of epochs in which the head trains alone.
        every: Number of epochs between two steps.
        step: Depth that a step adds: a number of groups, or a fraction of all groups.

    Raises:
        ConfigError: ``every`` or ``step`` is not positive.
    """
    if every < 1:
        found = format_value(every)
        raise ConfigError(f"unfreeze.params: every={found} is not a number of epochs from 1.")
    resolve_depth(step, num_groups)  # raises if it is neither a number of groups nor a fraction
    if epoch < start:
        return 1
    num_steps = 1 + (epoch - start) // every
    added = (
        num_steps * step if isinstance(step, int) else _count_groups(num_steps * step, num_groups)
    )
    return min(num_groups, 1 + added)


def milestones(epoch: int, num_groups: int, *, depths: Mapping[int, Depth]) -> int:
    """Return the depth of the last milestone reached; before the first one, of the head alone.

    Args:
        epoch: Epoch, counted from 0.
        num_groups: Number of layer groups of the network.
        depths: Depth by first epoch, as in ``{0: 1, 3: 0.5, 6: 1.0}``.

    Raises:
        ConfigError: ``depths`` is not such a mapping.
    """
    if not isinstance(depths, Mapping) or not all(str(first).isdigit() for first in depths):
        raise ConfigError(
            f"unfreeze.params: depths={format_value(depths)} is not a mapping from epochs "
            f"(integers from 0) to depths, such as {{0: 1, 3: 0.5, 6: 1.0}}."
        )
    depth_of = {int(first): resolve_depth(depth, num_groups) for first, depth in depths.items()}
    milestones_reached = [first for first in depth_of if first <= epoch]
    return depth_of[max(milestones_reached)] if milestones_reached else 1


UNFREEZE_SCHEDULES: Mapping[str, Callable[..., int]] = {
    "all": train_all,
    "linear_probe": linear_probe,
    "head_first": head_first,
    "gradual": gradual,
    "milestones": milestones,
}


def resolve_depth(depth: Depth, num_groups: int) -> int:
    """Convert an integer, or a fraction in (0, 1], to a number of groups in [1, num_groups].

    Raises:
        ConfigError: ``depth`` is neither.
    """
    if isinstance(depth, bool) or not isinstance(depth, int | float) or depth <= 0:
        raise ConfigError(
            f"unfreeze.params: depth {format_yaml_value(depth)} is neither a number of layer "
            f"groups nor a fraction in (0, 1]."
        )
    if isinstance(depth, int):
        return min(depth, num_groups)
    if depth > 1:
        raise ConfigError(
            f"unfreeze.params: depth {depth} exceeds 1.0, the fraction for all layer groups; write "
            f"an integer for a number of groups."
        )
    return max(1, _count_groups(depth, num_groups))


def _count_groups(fraction: float, num_groups: int) -> int:
    # 0.7 * 10 slightly exceeds 7 in floating point, and must not become 8
    return math.ceil(round(fraction * num_groups, 9))


def compute_phases(depth_schedule: Callable[[int], int], *, num_epochs: int) -> tuple[Phase, ...]:
    """Group consecutive epochs of the same depth into phases, in order.

    Args:
        depth_schedule: Function from epoch, counted from 0, to depth.
        num_epochs: Number of epochs of the run.
    """
    phases: list[Phase] = []
    for epoch in range(num_epochs):
        depth = depth_schedule(epoch)
        if phases and phases[-1].depth == depth:
            phases[-1] = Phase(phases[-1].first_epoch, epoch, depth)
        else:
            phases.append(Phase(epoch, epoch, depth))
    return tuple(phases)
