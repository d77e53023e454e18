"""The shares of the classes that a run trains with, and those that its network's logits assume."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.builders.criterion import compute_class_weights, compute_class_weights_start_epoch
from finetune.builders.resolve import require_int
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.samplers.sampling_weights import SamplingSchedule, compute_expected_draws
from finetune.errors import ConfigError
from finetune.evaluation.priors import ClassPrior, Priors, compute_model_prior, normalize_prior
from finetune.types import Split


def compute_run_priors(config: Config, manifest: Manifest, sampling: SamplingSchedule) -> Priors:
    """Return the priors that the card of a run states.

    The target of ``imbalance.head_rebalancing=post_hoc`` are classes of equal size; others have none, and their
    answers are as the network says. A head that is fitted again later states its own then.

    What changes over the epochs counts as in the last one; checkpoints of others state their own,
    see ``build_model_prior_schedule``. Of a loss of the user's own nothing is known; it is taken for one that
    adjusts no logits, and so are the margins of LDAM.

    Args:
        config: Resolved: the sampler, the loss and the class weights are written out.
        manifest: The images.
        sampling: Of training images, by the epoch.

    Raises:
        ConfigError: The answers are to be adjusted for a class that the loss never sees.
    """
    counts = manifest.count_per_class(Split.TRAIN)
    model = build_model_prior_schedule(config, manifest, sampling)(
        require_int(config.trainer.epochs) - 1
    )
    alike = normalize_prior([float(count > 0) for count in counts])
    target = alike if config.imbalance.head_rebalancing == "post_hoc" else None
    if target is not None:
        _check_prior_support(config, manifest, target, model)
    return Priors(train=normalize_prior(counts), model=model, target=target)


def build_model_prior_schedule(
    config: Config, manifest: Manifest, sampling: SamplingSchedule
) -> Callable[[int], ClassPrior]:
    """Return the class shares that logits assume after an epoch, as a function of the epoch.

    An epoch that shows nothing of a class which others show counts as the last one: what the
    network has learnt of that class, it has from them.

    Args:
        config: Resolved: the sampler, the loss and the class weights are written out.
        manifest: The images.
        sampling: Of training images, by the epoch.
    """
    counts = manifest.count_per_class(Split.TRAIN)
    labels = np.asarray(manifest.encode_labels(manifest.get_samples(Split.TRAIN)), np.int64)
    factors, start = (
        compute_class_weights(config, counts),
        compute_class_weights_start_epoch(config),
    )
    last = require_int(config.trainer.epochs) - 1

    def mass(epoch: int) -> NDArray[np.float64]:
        seen = compute_expected_draws(sampling(epoch), len(labels))
        if factors is not None and start is not None and epoch >= start:
            seen = seen * factors.double().numpy()[labels]
        return np.asarray(np.bincount(labels, seen, minlength=len(counts)), float)

    def prior(epoch: int) -> ClassPrior:
        shown = mass(epoch)
        if ((shown <= 0) & (np.asarray(counts) > 0)).any():
            shown = mass(last)
        return compute_model_prior(
            counts, class_mass=shown.tolist(), tau=_get_adjustment_tau(config)
        )

    return prior


def compute_run_logit_shift(
    config: Config, manifest: Manifest, sampling: SamplingSchedule
) -> Tensor | None:
    """Return what is added to the logits of a run's model, shape (K,); None: nothing.

    Args:
        config: Resolved.
        manifest: The images.
        sampling: Of training images, by the epoch.

    Raises:
        ConfigError: As ``compute_run_priors``.
    """
    shift = compute_run_priors(config, manifest, sampling).shift
    return None if shift is None else torch.tensor(shift)


def _check_prior_support(
    config: Config, manifest: Manifest, target: ClassPrior, model: ClassPrior
) -> None:
    """Raise where answers would be adjusted to classes that training gives no part."""
    pairs = zip(manifest.classes, target, model, strict=True)
    unknown = [name for name, wanted, known in pairs if wanted > 0 and known <= 0]
    if unknown:
        chosen = config.imbalance
        raise ConfigError(
            f"imbalance.head_rebalancing={chosen.head_rebalancing} cannot adjust the answers for class '{unknown[0]}', "
            f"which has no part in the last epoch by imbalance.sampler={chosen.sampler}, "
            f"imbalance.class_weights={chosen.class_weights} and loss.name={config.loss.name}. "
            f"Give it one, or set imbalance.head_rebalancing=none."
        )


def _get_adjustment_tau(config: Config) -> float:
    """Return the tau of a logit-adjusted loss; 0 for any other."""
    if config.loss.name != "logit_adjusted":
        return 0.0
    return float(config.loss.params.get("tau", 1.0))
