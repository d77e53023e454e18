"""Divergence of a run: where a value was not finite, and the error that tells it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from finetune.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Place at which the training of a run diverged.

    Attributes:
        what: Clause on the value that is not finite, such as "the training loss is nan".
        epoch: Epoch, counted from 1.
        step: Optimizer step of the epoch, counted from 1; None after the epoch.
        steps_per_epoch: Optimizer steps of an epoch; None if they are not known.
        is_first: Whether no step has changed the weights before it.
        is_probe: Whether the last stage was trained on cached activations, before the epochs.
        learning_rates: Learning rate of each layer group that trained.
    """

    what: str
    epoch: int
    step: int | None = None
    steps_per_epoch: int | None = None
    is_first: bool = False
    is_probe: bool = False
    learning_rates: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "learning_rates": dict(self.learning_rates)}


def parse_divergence(tree: Any) -> Divergence | None:
    """Return a divergence from its JSON values; None if they are missing or damaged."""
    if not isinstance(tree, Mapping):
        return None
    try:
        return Divergence(**tree)
    except TypeError:
        return None


class DivergenceError(TrainingError):
    """Loss, gradients, weights or outputs that are not finite.

    Attributes:
        divergence: Where they were found.
    """

    def __init__(self, message: str, divergence: Divergence) -> None:
        super().__init__(message)
        self.divergence = divergence

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what builds the error again in another process."""
        return type(self), (str(self), self.divergence)
