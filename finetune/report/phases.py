"""Phases of training, as the learning rates of the layer groups show them."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.report.run_facts import Row


@dataclass(frozen=True, slots=True)
class TrainingPhase:
    """Consecutive epochs in which the same layer groups train.

    Attributes:
        first_epoch: First epoch, counted from 1.
        last_epoch: Last epoch, inclusive.
        groups: Layer groups that train, from the head on.
    """

    first_epoch: int
    last_epoch: int
    groups: tuple[str, ...]

    def describe(self, num_groups: int) -> str:
        """Return the groups in words.

        Args:
            num_groups: Number of layer groups of the network.
        """
        if not self.groups:
            return "nothing"
        if len(self.groups) == num_groups:
            return "all layers"
        if len(self.groups) == 1:
            return f"{self.groups[0]} only"
        return f"{self.groups[0]} to {self.groups[-1]}"

    def name_briefly(self, num_groups: int) -> str:
        """Return the last group that trains, for a narrow place; arguments as ``describe``."""
        text = self.describe(num_groups)
        return text.removesuffix(" only").removeprefix(f"{self.groups[0]} ") if self.groups else ""


def list_groups(rows: Sequence[Row], prefix: str) -> tuple[str, ...]:
    """Return the layer groups with a column ``prefix/<group>``, in the order of the columns."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(f"{prefix}/"))
    return tuple(name.partition("/")[2] for name in names)


def find_phases(rows: Sequence[Row]) -> tuple[TrainingPhase, ...]:
    """Return the phases of a run; none where its rows have no learning rates."""
    groups = list_groups(rows, "lr")
    phases: list[TrainingPhase] = []
    for row in rows:
        epoch = int(row["epoch"])
        if epoch == 0 or not any(f"lr/{group}" in row for group in groups):
            continue
        active = tuple(group for group in groups if row.get(f"lr/{group}", 0.0) > 0)
        if phases and phases[-1].groups == active:
            phases[-1] = TrainingPhase(phases[-1].first_epoch, epoch, active)
        else:
            phases.append(TrainingPhase(epoch, epoch, active))
    return tuple(phases)
