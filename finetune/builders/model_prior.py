"""Treatment of imbalanced classes over the epochs, and the class priors that follow from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.builders.criterion import (
    ClassWeights,
    CriterionSchedule,
    build_class_weights,
    build_criterion_schedule,
    compute_class_weights_start_epoch,
)
from finetune.builders.sampling import build_sampling_schedule
from finetune.config.imbalance import IMBALANCE_STRATEGIES, ImbalanceStrategy
from finetune.config.resolved import ResolvedConfig
from finetune.config.sections.objective import LossConfig
from finetune.data.samplers.sampling_weights import SamplingSchedule, compute_expected_draws
from finetune.data.training_data import TrainingData
from finetune.evaluation.priors import (
    ClassPrior,
    Priors,
    adjust_priors,
    compute_model_prior,
    normalize_prior,
)

PriorSchedule = Callable[[int], ClassPrior]


@dataclass(frozen=True, slots=True, eq=False)
class ClassBalance:
    """Treatment of imbalanced classes in a run.

    Attributes:
        sampling_schedule: Sampling of the training images as a function of the epoch.
        class_weights: Class weights in the loss; None without any.
        criterion_schedule: Criterion as a function of the epoch.
        prior_schedule: Class prior that the logits assume, as a function of the epoch.
        priors: Class priors on the model card of the run, until a strength is chosen on held-out
            images without a target prior.
        adjusts_probabilities: Whether probabilities are, or may be, adjusted to a target prior.
    """

    sampling_schedule: SamplingSchedule
    class_weights: ClassWeights | None
    criterion_schedule: CriterionSchedule
    prior_schedule: PriorSchedule
    priors: Priors
    adjusts_probabilities: bool

    @property
    def logit_shift(self) -> Tensor | None:
        """Logit adjustment of the run's model, shape (K,); None without one."""
        return None if self.priors.shift is None else torch.tensor(self.priors.shift)

    def find_untrained_classes(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return the classes of an adjusted run that training gives no weight."""
        if not self.adjusts_probabilities:
            return ()
        triples = zip(classes, self.priors.train, self.priors.model, strict=True)
        return tuple(name for name, train, model in triples if train > 0 and model <= 0)


def build_class_balance(config: ResolvedConfig, data: TrainingData) -> ClassBalance:
    """Return how a run samples and weights its classes, and its class priors.

    Args:
        config: Resolved config.
        data: Images of the run.

    Raises:
        ConfigError: The sampler, the class weights or the loss do not exist, do not fit or fail.
    """
    num_epochs = config.trainer.epochs
    sampling_schedule = build_sampling_schedule(config.imbalance, data, num_epochs=num_epochs)
    class_weights = build_class_weights(config.imbalance, data.class_counts, num_epochs=num_epochs)
    # checks the parameters of the loss, of which the prior uses tau
    criterion_schedule = build_criterion_schedule(config.loss, data.class_counts, class_weights)
    prior_schedule = build_model_prior_schedule(
        data,
        sampling_schedule,
        class_weights,
        num_epochs=num_epochs,
        tau=_get_adjustment_tau(config.loss),
    )
    is_post_hoc = config.imbalance.head_rebalancing == "post_hoc"
    strength = config.imbalance.post_hoc_strength if is_post_hoc else None
    priors = compute_run_priors(
        data.class_counts,
        model_prior=prior_schedule(num_epochs - 1),
        strength=None if strength == "held_out" else strength,
    )
    return ClassBalance(
        sampling_schedule,
        class_weights,
        criterion_schedule,
        prior_schedule,
        priors,
        adjusts_probabilities=is_post_hoc,
    )


def compute_run_priors(
    class_counts: Sequence[int], *, model_prior: ClassPrior, strength: float | None
) -> Priors:
    """Return the class priors on the model card of a run.

    A schedule over the epochs counts as in the last one; checkpoints of other epochs have their own
    priors, see ``build_model_prior_schedule``. A custom loss and LDAM are assumed to adjust no
    logits. A head that is rebalanced after training gets other priors then.

    Args:
        class_counts: Training images of each class, shape (K,).
        model_prior: Class prior that the logits assume after the last epoch.
        strength: Strength of the adjustment to classes of equal size
            (``imbalance.head_rebalancing=post_hoc``), at most 1; None and 0 for no target prior.
    """
    train = normalize_prior(class_counts)
    priors = Priors(train=train, model=model_prior)
    is_untrained = any(t > 0 >= m for t, m in zip(train, model_prior, strict=True))
    if strength is None or is_untrained:  # the latter raises in builders/constraints
        return priors
    return adjust_priors(priors, strength=strength)


def build_model_prior_schedule(
    data: TrainingData,
    sampling_schedule: SamplingSchedule,
    class_weights: ClassWeights | None,
    *,
    num_epochs: int,
    tau: float,
) -> PriorSchedule:
    """Return the class prior that the logits assume after an epoch, as a function of the epoch.

    An epoch without images of a class that other epochs have counts as the last one: the network
    has learnt that class from the other epochs.

    Args:
        data: Images of the run.
        sampling_schedule: Sampling of the training images as a function of the epoch.
        class_weights: Class weights in the loss; None without any.
        num_epochs: Number of epochs of the run.
        tau: Temperature of a logit-adjusted loss; 0 for other losses.
    """
    counts, labels = data.class_counts, data.train.labels

    def compute_class_mass(epoch: int) -> NDArray[np.float64]:
        draws = compute_expected_draws(sampling_schedule(epoch), len(labels))
        if class_weights is not None and epoch >= class_weights.start_epoch:
            draws = draws * class_weights.factors.double().numpy()[labels]
        return np.asarray(np.bincount(labels, draws, minlength=len(counts)), float)

    def compute_prior(epoch: int) -> ClassPrior:
        class_mass = compute_class_mass(epoch)
        if ((class_mass <= 0) & (np.asarray(counts) > 0)).any():
            class_mass = compute_class_mass(num_epochs - 1)
        return compute_model_prior(counts, class_mass=class_mass.tolist(), tau=tau)

    return compute_prior


def find_final_imbalance_phases(
    config: ResolvedConfig, data: TrainingData
) -> dict[str, tuple[str, int]]:
    """Return the setting behind the sampler and the class weights, and when each becomes constant.

    Args:
        config: Resolved config.
        data: Images of the run.

    Returns:
        "sampler" and "class_weights", each with its setting as "key=value", a strategy or a key of
        its own, and the first epoch, from 0, of its constant last phase. 0 means that it never
        changes; ``progressive`` changes up to the last epoch.

    Raises:
        ConfigError: As ``build_sampling_schedule``.
    """
    chosen, num_epochs = config.imbalance, config.trainer.epochs
    strategy, default = IMBALANCE_STRATEGIES[chosen.strategy], ImbalanceStrategy()
    sampler_setting = weights_setting = f"imbalance.strategy={chosen.strategy}"
    if strategy.sampler == default.sampler:
        sampler_setting = f"imbalance.sampler={chosen.sampler}"
    if strategy.class_weights == default.class_weights:
        weights_setting = (
            f"imbalance.class_weights_start_fraction={chosen.class_weights_start_fraction}"
        )
    schedule = build_sampling_schedule(chosen, data, num_epochs=num_epochs)
    final_sampling_epoch = _find_final_sampling_epoch(
        schedule, num_images=len(data.train), num_epochs=num_epochs
    )
    weights_epoch = compute_class_weights_start_epoch(chosen, num_epochs=num_epochs) or 0
    return {
        "sampler": (sampler_setting, final_sampling_epoch),
        "class_weights": (weights_setting, weights_epoch),
    }


def _find_final_sampling_epoch(
    sampling_schedule: SamplingSchedule, *, num_images: int, num_epochs: int
) -> int:
    """Return the first epoch, from 0, from which images are drawn as in the last one."""

    def compute_fractions(epoch: int) -> NDArray[np.float64]:
        draws = compute_expected_draws(sampling_schedule(epoch), num_images)
        return np.asarray(draws / draws.sum(), float)

    epoch = num_epochs - 1
    final = compute_fractions(epoch)
    while epoch > 0 and np.allclose(compute_fractions(epoch - 1), final, rtol=1e-9, atol=0):
        epoch -= 1
    return epoch


def _get_adjustment_tau(loss: LossConfig) -> float:
    """Return the temperature of a logit-adjusted loss; 0 for other losses."""
    return float(loss.params.get("tau", 1.0)) if loss.name == "logit_adjusted" else 0.0
