"""Goals of metrics: whether the highest, the lowest or the last value stands for a run."""

from typing import Literal

Goal = Literal["max", "min", "last"]

_MEASURED = ("val/", "train_eval/")


def get_goal(name: str) -> Goal:
    """Return the goal of a column of ``metrics.csv``.

    Losses are best at their lowest and metrics of images at their highest value. Learning rates,
    norms and speeds are neither.
    """
    if name.rpartition("/")[2].endswith(("loss", "error")):
        return "min"
    return "max" if name.startswith(_MEASURED) else "last"
