"""Validation loss that explodes in the course of a run without becoming infinite."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.units import format_scientific

EXPLOSION_FACTOR = 10
"""Multiple of the loss of guessing from which a validation loss has exploded.

It is a definition, far above the loss of a network that overfits: that is too sure of its few wrong
predictions, this one is sure of wrong predictions everywhere.
"""


@dataclass(frozen=True, slots=True)
class LossExplosion:
    """Validation loss that has exploded.

    Attributes:
        epoch: First epoch with an exploded loss, counted from 1.
        loss: Its loss.
        before: Lowest loss before it; None if it is the first row.
        last: Loss after the last epoch.
        guess: Loss of guessing all classes alike.
    """

    epoch: int
    loss: float
    before: float | None
    last: float
    guess: float

    @property
    def has_lasted(self) -> bool:
        """Whether the loss was still as high after the last epoch."""
        return self.last > EXPLOSION_FACTOR * self.guess

    def describe(self) -> str:
        """Return the sentence that says what happened and when."""
        start = "" if self.before is None else f" from {self.before:.4f}"
        text = (
            f"val/loss exploded in epoch {self.epoch},{start} to {format_scientific(self.loss)} "
            f"(guessing all classes alike: {self.guess:.4f})"
        )
        return f"{text}, and was {format_scientific(self.last)} after the last epoch."


def find_loss_explosion(
    rows: Sequence[Mapping[str, float]], *, num_classes: int, is_multi_label: bool = False
) -> LossExplosion | None:
    """Return where the validation loss of a run exploded; None if it did not.

    Args:
        rows: Metrics by name, of the probe, as epoch 0, and of each epoch.
        num_classes: Number of classes.
        is_multi_label: Whether the loss is the mean over the labels of each image.
    """
    guess = math.log(2 if is_multi_label else max(2, num_classes))
    epochs = [(int(row["epoch"]), row["val/loss"]) for row in rows if "val/loss" in row]
    for number, (epoch, loss) in enumerate(epochs):
        # NaN compares as false; it ends a run, except those of older releases
        if epoch and loss > EXPLOSION_FACTOR * guess:
            finite = [value for _, value in epochs[:number] if math.isfinite(value)]
            before = min(finite, default=None)
            return LossExplosion(epoch, loss, before, epochs[-1][1], guess)
    return None
