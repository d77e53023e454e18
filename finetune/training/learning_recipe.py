"""Schedules and settings by which a classifier is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from finetune.models.classifier import ImageClassifier
from finetune.training.mixup import Mixup
from finetune.training.schedules.plateau import PlateauSettings


@dataclass(frozen=True, slots=True)
class Recipe:
    """Schedules and settings by which a classifier is trained.

    Attributes:
        criterion_schedule: Function from epoch to criterion, which maps logits (B, K) and class
            indices (B,) to the mean loss.
        depth_schedule: Function from epoch to unfreeze depth.
        make_optimizer: Function that builds the optimizer over all parameters; called once.
        lr_lambda: Function from completed optimizer steps to the factor of all learning rates.
        seed: Seed of dropout; with epoch, batch and rank it determines the generator's state.
        mixup: Mixup and CutMix of training images.
        averaging_start_step: Steps before weight averaging begins; None validates and saves the
            current weights.
        model_prior_schedule: Function from epoch to the class prior that the logits assume after
            it, stored in the card of its checkpoints; None leaves the card unchanged.
        plateau: Reduction of the learning rates on a plateau of the validation metric; None for a
            schedule that is known before training.
        momentum_lambda: Function from completed optimizer steps to the momentum; None leaves it as
            it is.
        penalty: Function from the classifier to a penalty of its weights, which is added to the
            loss of each batch; None adds nothing.
    """

    criterion_schedule: Callable[[int], Callable[[Tensor, Tensor], Tensor]]
    depth_schedule: Callable[[int], int]
    make_optimizer: Callable[[ImageClassifier], Optimizer]
    lr_lambda: Callable[[int], float]
    seed: int
    mixup: Mixup = field(default_factory=Mixup)
    averaging_start_step: int | None = None
    model_prior_schedule: Callable[[int], Sequence[float]] | None = None
    plateau: PlateauSettings | None = None
    momentum_lambda: Callable[[int], float] | None = None
    penalty: Callable[[ImageClassifier], Tensor] | None = None

    def build_epoch_card(self, card: Mapping[str, Any], epoch: int) -> dict[str, Any]:
        """Return the JSON of a model card with the class prior of the logits after an epoch."""
        priors = card.get("priors")
        if priors is None or self.model_prior_schedule is None:
            return dict(card)
        return {**card, "priors": {**priors, "model": list(self.model_prior_schedule(epoch))}}
