"""Loss of multi-label images, and the weights of images with and without each label."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune.builders.criterion import (
    ClassWeights,
    Criterion,
    check_label_smoothing,
    check_loss_params,
    compute_class_weights_start_epoch,
)
from finetune.builders.model_prior import ClassBalance
from finetune.builders.optimization.component_params import describe_failure
from finetune.config.resolved import ResolvedConfig
from finetune.data.training_data import TrainingData
from finetune.errors import ConfigError, FinetuneError
from finetune.evaluation.priors import Priors, normalize_prior
from finetune.lookup import check_params, look_up
from finetune.losses import LOSSES, compute_positive_weights


def build_label_balance(config: ResolvedConfig, data: TrainingData) -> ClassBalance:
    """Return how a run of multi-label images weights its labels: every image is drawn once.

    Its class weights are those of the images with each label. A prior over classes that exclude
    each other does not exist; no card has the one returned here.

    Args:
        config: Resolved config.
        data: Images of the run.

    Raises:
        ConfigError: The loss does not exist, does not take its parameters, or fails.
    """
    weights = _build_positive_weights(config, data)
    prior = normalize_prior(data.class_counts)
    return ClassBalance(
        sampling_schedule=lambda _: None,
        class_weights=weights,
        criterion_schedule=_build_criterion_schedule(config, len(data.classes), weights),
        prior_schedule=lambda _: prior,
        priors=Priors(train=prior, model=prior),
        adjusts_probabilities=False,
    )


def _build_positive_weights(config: ResolvedConfig, data: TrainingData) -> ClassWeights | None:
    start = compute_class_weights_start_epoch(config.imbalance, num_epochs=config.trainer.epochs)
    if start is None:
        return None
    return ClassWeights(compute_positive_weights(data.class_counts, len(data.train)), start)


def _build_criterion_schedule(
    config: ResolvedConfig, num_labels: int, weights: ClassWeights | None
) -> Callable[[int], Criterion]:
    """Return the criterion as a function of the epoch."""
    name, params = config.loss.name, config.loss.params
    loss = look_up(LOSSES, name, setting="loss.name")
    check_loss_params(loss, params)
    kwargs: dict[str, Any] = dict(params)
    if config.loss.label_smoothing:
        check_label_smoothing(loss, name, config.loss.label_smoothing)
        kwargs["label_smoothing"] = config.loss.label_smoothing
    weighted_kwargs = kwargs
    if weights is not None:
        weighted_kwargs = {**kwargs, "positive_weights_K": weights.factors}
    setting = "loss.params" if params else f"loss.name={name}"
    check_params(loss, weighted_kwargs, num_positional=2, setting=setting)
    unweighted, weighted = partial(loss, **kwargs), partial(loss, **weighted_kwargs)
    _check_criterion(unweighted, config, num_labels)
    start_epoch = 0 if weights is None else weights.start_epoch
    return lambda epoch: unweighted if epoch < start_epoch else weighted


def _check_criterion(criterion: Criterion, config: ResolvedConfig, num_labels: int) -> None:
    """Call the loss once, so that an unsuitable one is found before any work.

    Raises:
        ConfigError: It fails for targets of shape (B, K).
    """
    target = torch.zeros(2, num_labels)
    target[0] = 1
    try:
        value: Tensor = torch.as_tensor(criterion(torch.zeros(2, num_labels), target))
        if value.ndim or not value.isfinite():
            raise ValueError(f"the loss of logits of 0 is {value.tolist()}")
    except FinetuneError:
        raise
    except Exception as error:
        name, params = config.loss.name, config.loss.params
        raise ConfigError(
            f"loss.name={name} with loss.params={params} fails for targets of multi-label images: "
            f"{describe_failure(error, params, is_custom=':' in name)}."
        ) from error
