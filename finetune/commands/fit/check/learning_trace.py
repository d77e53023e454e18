"""Record of an attempt to learn a few images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune.units import format_count

MIN_FALL = 0.02
"""Relative fall of the loss below which it has not moved."""

_CLEAR_FRACTION = 0.9

_MIN_STEPS = 8
"""Steps after which a loss that has not moved is held against the settings."""

_MAX_STUCK_PASSES, _NUM_COMPARED = 15, 5
"""Passes after which a loss that is still near its start is given up, and the last ones of them."""

_MIN_LOSS = 1e-6
"""Loss that cannot fall any more."""

_EXPLOSION_FACTOR = 2.0


def is_falling(start_loss: float, losses: Sequence[float]) -> bool:
    """Return whether the loss of the last pass is the least one, and clearly below the start."""
    return bool(losses) and losses[-1] <= min(*losses, _CLEAR_FRACTION * start_loss)


def is_stuck(start_loss: float, losses: Sequence[float]) -> bool:
    """Return whether the loss has not been clearly below the start in any of the last passes."""
    last = losses[-_NUM_COMPARED:]
    return len(losses) >= _MAX_STUCK_PASSES and min(last) > _CLEAR_FRACTION * start_loss


@dataclass(frozen=True, slots=True)
class LearningTrace:
    """Record of an attempt to learn a few images.

    Attributes:
        lr: Learning rate of the head; None for a head that was fitted without one.
        depth: Layer groups that trained, from the head.
        num_images: Number of images.
        start_loss: Loss of the images before the first step.
        chance_loss: Loss of a network that gives each class the same logit.
        losses: Mean loss of each pass over the images, each batch before its step.
        end_loss: Loss of the images after the last step.
        start_errors: Images that were wrong before the first step.
        num_errors: Images that are wrong after the last step.
        gradient_norm: Norm of the gradient by the logits in the first step; None without a step.
        num_steps: Optimizer steps.
        seconds: Seconds that it took.
        is_timed_out: Whether it ended because of its time limit.
    """

    lr: float | None
    depth: int
    num_images: int
    start_loss: float
    chance_loss: float
    losses: tuple[float, ...]
    end_loss: float
    start_errors: int
    num_errors: int
    gradient_norm: float | None
    num_steps: int
    seconds: float
    is_timed_out: bool

    @property
    def is_exploded(self) -> bool:
        """Whether the loss became NaN, or twice that of the start and of equal logits."""
        limit = _EXPLOSION_FACTOR * max(self.start_loss, self.chance_loss)
        return not all(loss <= limit for loss in (*self.losses, self.end_loss))

    @property
    def is_unmoved(self) -> bool:
        """Whether the loss did not fall by more than ``MIN_FALL`` of its start."""
        if self.start_loss < _MIN_LOSS:
            return False
        return not self.end_loss < (1 - MIN_FALL) * self.start_loss

    @property
    def is_cut_off(self) -> bool:
        """Whether the time limit ended it while the loss was falling."""
        return self.is_timed_out and is_falling(self.start_loss, self.losses)

    @property
    def is_still(self) -> bool:
        """Whether enough steps moved the loss by no more than ``MIN_FALL`` of its start."""
        if self.num_steps < _MIN_STEPS:
            return False
        return abs(self.end_loss - self.start_loss) <= MIN_FALL * self.start_loss

    @property
    def is_learned(self) -> bool:
        """Whether no image is wrong, and the loss fell without exploding."""
        if self.num_errors or self.is_exploded:
            return False
        return self.num_steps == 0 or not self.is_unmoved

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def describe_errors(trace: LearningTrace, num_errors: int) -> str:
    """Return how many of the images of an attempt are wrong, in words."""
    verb = "is" if num_errors == 1 else "are"
    return f"{num_errors or 'none'} of {format_count(trace.num_images, 'image')} {verb} wrong"
