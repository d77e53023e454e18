"""Loss function of each epoch, and class weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune.builders.optimization.component_params import (
    check_settable,
    check_types,
    describe_failure,
)
from finetune.config.resolved import ResolvedImbalanceConfig, ResolvedLossConfig
from finetune.config.sections.objective import LossConfig
from finetune.data.samplers.sampling_weights import compute_start_epoch
from finetune.errors import ConfigError, FinetuneError
from finetune.lookup import check_params, has_parameter, look_up
from finetune.losses import CLASS_WEIGHTS, LOSSES, MULTI_LABEL_LOSSES, compute_prior_offset

Criterion = Callable[[Tensor, Tensor], Tensor]

CriterionSchedule = Callable[[int], Criterion]

_RESERVED_PARAMS = {
    "class_counts_K": "the training images",
    "class_weights_K": "imbalance.class_weights",
    "positive_weights_K": "imbalance.class_weights",
    "label_smoothing": "loss.label_smoothing",
}
"""Keywords of a loss that ``loss.params`` cannot set, and their source."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassWeights:
    """Factors of the classes in the loss.

    Attributes:
        factors: Factor of each class, shape (K,).
        start_epoch: Epoch, from 0, from which they apply.
    """

    factors: Tensor
    start_epoch: int


def build_class_weights(
    imbalance: ResolvedImbalanceConfig, class_counts: Sequence[int], *, num_epochs: int
) -> ClassWeights | None:
    """Return the class weights of a run; None without any.

    Args:
        imbalance: Section of the config.
        class_counts: Training images of each class, shape (K,).
        num_epochs: Number of epochs of the run.

    Raises:
        ConfigError: ``imbalance.class_weights_params`` do not fit.
    """
    start_epoch = compute_class_weights_start_epoch(imbalance, num_epochs=num_epochs)
    if start_epoch is None:
        return None
    method, params = CLASS_WEIGHTS[imbalance.class_weights], imbalance.class_weights_params
    check_params(method, params, num_positional=1, setting="imbalance.class_weights_params")
    check_types(method, params, setting="imbalance.class_weights_params")
    try:
        return ClassWeights(method(class_counts, **params), start_epoch)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"imbalance.class_weights_params={params}: {error}") from error


def compute_class_weights_start_epoch(
    imbalance: ResolvedImbalanceConfig, *, num_epochs: int
) -> int | None:
    """Return the epoch, from 0, from which class weights apply; None without any.

    It is the last epoch at the latest.
    """
    if imbalance.class_weights == "none":
        return None
    return compute_start_epoch(imbalance.class_weights_start_fraction, num_epochs)


def build_criterion_schedule(
    loss_config: ResolvedLossConfig,
    class_counts: Sequence[int],
    class_weights: ClassWeights | None,
) -> CriterionSchedule:
    """Return the criterion as a function of the epoch.

    Args:
        loss_config: Section of the config.
        class_counts: Training images of each class, shape (K,).
        class_weights: Class weights; None without any.

    Raises:
        ConfigError: The loss does not exist, does not take its parameters, or fails.
    """
    name, params = loss_config.name, loss_config.params
    loss = look_up(LOSSES, name, setting="loss.name")
    check_loss_params(loss, params)
    kwargs: dict[str, Any] = dict(params)
    if has_parameter(loss, "class_counts_K"):
        kwargs["class_counts_K"] = torch.tensor(class_counts, dtype=torch.float32)
    if loss_config.label_smoothing:
        check_label_smoothing(loss, name, loss_config.label_smoothing)
        kwargs["label_smoothing"] = loss_config.label_smoothing
    weighted_kwargs = kwargs
    if class_weights is not None:
        weighted_kwargs = {**kwargs, "class_weights_K": class_weights.factors}
    setting = "loss.params" if params else f"loss.name={name}"
    check_params(loss, weighted_kwargs, num_positional=2, setting=setting)
    unweighted, weighted = partial(loss, **kwargs), partial(loss, **weighted_kwargs)
    if params:
        _check_criterion(unweighted, loss_config, class_counts)
    if class_weights is None:
        return lambda epoch: weighted
    start_epoch = class_weights.start_epoch
    return lambda epoch: unweighted if epoch < start_epoch else weighted


def check_label_smoothing(loss: Callable[..., Tensor], name: str, value: float) -> None:
    """Check that a loss smooths labels.

    Args:
        loss: The loss.
        name: Its name.
        value: Label smoothing.

    Raises:
        ConfigError: It does not.
    """
    if not has_parameter(loss, "label_smoothing"):
        raise ConfigError(
            f"loss.label_smoothing={value:g} cannot apply to loss.name={name}, which does not "
            f"smooth labels. Leave it out."
        )


def check_loss_params(loss: Callable[..., Tensor], params: Mapping[str, Any]) -> None:
    """Check that a loss takes ``loss.params``, and that no other setting determines one of them.

    Raises:
        ConfigError: It does not, or one does.
    """
    check_settable(loss, params, sources=_RESERVED_PARAMS, num_positional=2, setting="loss.params")
    if loss in LOSSES.values():
        check_types(loss, params, setting="loss.params")


def select_probe_loss(loss_name: str) -> str:
    """Return the name of the loss that a linear probe minimizes.

    A probe cannot be fitted with focal, margin or custom losses; before fine-tuning with one of
    them it minimizes cross-entropy, with the class weights of the run; for multi-label images that
    of each label.
    """
    if loss_name in MULTI_LABEL_LOSSES:
        return "bce"
    return "logit_adjusted" if loss_name == "logit_adjusted" else "cross_entropy"


def compute_probe_logit_offset(
    loss_config: LossConfig, class_counts: Sequence[int]
) -> Tensor | None:
    """Return the offset of a linear probe's logits while it is fitted, shape (K,); None for 0.

    Args:
        loss_config: Section of the config.
        class_counts: Training images of each class, shape (K,).
    """
    if select_probe_loss(loss_config.name) != "logit_adjusted":
        return None
    return compute_prior_offset(
        torch.tensor(class_counts, dtype=torch.float32), **loss_config.params
    )


def _check_criterion(
    criterion: Criterion, loss_config: LossConfig, class_counts: Sequence[int]
) -> None:
    """Call the loss once, so that invalid parameters are found before any work.

    The labels are those of the largest and the smallest class; one of them shows an excess.
    """
    counts_K = torch.tensor(class_counts)
    labels = torch.stack([counts_K.argmax(), counts_K.argmin()])
    try:
        loss = torch.as_tensor(criterion(torch.zeros(2, len(class_counts)), labels))
        if not loss.isfinite().all():
            raise ValueError(f"the loss of logits of 0 is {loss.tolist()}")
    except FinetuneError:
        raise
    except Exception as error:
        raise ConfigError(
            f"loss.name={loss_config.name} with loss.params={loss_config.params} fails: "
            f"{describe_failure(error, loss_config.params, is_custom=':' in loss_config.name)}."
        ) from error
