"""The loss of each epoch, from names and numbers in the config."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune.builders.resolve import require_float, require_int
from finetune.config.schema import Config
from finetune.data.samplers.sampling_weights import compute_start_epoch
from finetune.errors import ConfigError, FinetuneError
from finetune.lookup import check_params, has_parameter, look_up
from finetune.losses import CLASS_WEIGHTS, LOSSES, compute_prior_offset

Criterion = Callable[[Tensor, Tensor], Tensor]

_RESERVED_PARAMS = {
    "class_counts_K": "the training images",
    "class_weights_K": "imbalance.class_weights",
    "label_smoothing": "loss.label_smoothing",
}
"""Keywords of a loss that ``loss.params`` cannot give, and where they come from."""


def build_criterion_schedule(
    config: Config, class_counts: Sequence[int]
) -> Callable[[int], Criterion]:
    """Return the criterion as a function of the epoch.

    Args:
        config: Resolved.
        class_counts: Training images of each class, shape (K,).

    Raises:
        ConfigError: The loss does not exist, does not take what it is given, or fails.
    """
    name, params = config.loss.name, config.loss.params
    loss = look_up(LOSSES, name, setting="loss.name")
    for key, source in _RESERVED_PARAMS.items():
        if key in params:
            raise ConfigError(f"loss.params: '{key}' comes from {source}. Leave it out.")
    given: dict[str, Any] = dict(params)
    if has_parameter(loss, "class_counts_K"):
        given["class_counts_K"] = torch.tensor(class_counts, dtype=torch.float32)
    if smoothing := require_float(config.loss.label_smoothing):
        given["label_smoothing"] = smoothing
    weights_K = compute_class_weights(config, class_counts)
    weighted = given if weights_K is None else {**given, "class_weights_K": weights_K}
    setting = "loss.params" if params else f"loss.name={name}"
    check_params(loss, weighted, num_positional=2, setting=setting)
    if params:
        _check_criterion(partial(loss, **given), config, class_counts)
    start = compute_class_weights_start_epoch(config)
    before, after = partial(loss, **given), partial(loss, **weighted)
    return lambda epoch: before if start is None or epoch < start else after


def compute_class_weights(config: Config, class_counts: Sequence[int]) -> Tensor | None:
    """Return the factor of each class in the loss once it applies, shape (K,); None: all alike.

    Args:
        config: Resolved.
        class_counts: Training images of each class, shape (K,).

    Raises:
        ConfigError: ``imbalance.class_weights_params`` do not fit.
    """
    name, params = config.imbalance.class_weights, config.imbalance.class_weights_params
    if name == "none":
        return None
    check_params(
        CLASS_WEIGHTS[name], params, num_positional=1, setting="imbalance.class_weights_params"
    )
    try:
        return CLASS_WEIGHTS[name](class_counts, **params)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"imbalance.class_weights_params={params}: {error}") from error


def compute_class_weights_start_epoch(config: Config) -> int | None:
    """Return the epoch, from 0, from which class weights apply, of a resolved config; None: none.

    It is the last one at the latest.
    """
    if config.imbalance.class_weights == "none":
        return None
    share = require_float(config.imbalance.class_weights_start_fraction)
    return compute_start_epoch(share, require_int(config.trainer.epochs))


def select_probe_loss(config: Config) -> str:
    """Return the loss that a probe minimises, of a resolved config.

    Focal and margin losses are not fitted, nor the user's own: before fine-tuning with one of them
    a probe minimises plain cross-entropy, with the class weights that there are.
    """
    return "logit_adjusted" if config.loss.name == "logit_adjusted" else "cross_entropy"


def compute_probe_logit_offset(config: Config, class_counts: Sequence[int]) -> Tensor | None:
    """Return what a probe adds to its logits while it is fitted, shape (K,); None: nothing.

    Args:
        config: Resolved.
        class_counts: Training images of each class, shape (K,).
    """
    if select_probe_loss(config) != "logit_adjusted":
        return None
    return compute_prior_offset(
        torch.tensor(class_counts, dtype=torch.float32), **config.loss.params
    )


def _check_criterion(criterion: Criterion, config: Config, class_counts: Sequence[int]) -> None:
    """Call the loss once, so that a wrong value is found before any work.

    The labels are the largest and the smallest class, as what is too much is so for one of them.
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
            f"loss.name={config.loss.name} with loss.params={config.loss.params} fails: "
            f"{type(error).__name__}: {error}"
        ) from error
