"""Optimizer of a run, with the constraint and the penalty of its weights."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetune.builders.optimization.component_params import (
    check_settable,
    check_types,
    explain_invalid,
)
from finetune.config.resolved import ResolvedOptimConfig
from finetune.errors import ConfigError
from finetune.models.classifier import ImageClassifier
from finetune.models.layer_groups import LayerGroup
from finetune.training.optimization.optimizers import (
    OPTIMIZERS,
    RESERVED_PARAMS,
    create_optimizer,
)
from finetune.training.optimization.param_groups import build_param_groups
from finetune.training.optimization.weight_constraints import (
    UnitLimit,
    apply_max_norm,
    compute_l1_penalty,
    constrain_after_step,
    find_unit_limits,
)


def build_optimizer_factory(
    optim: ResolvedOptimConfig, *, peak_learning_rates: list[float], is_fused: bool
) -> Callable[[ImageClassifier], torch.optim.Optimizer]:
    """Return a function that makes the optimizer of a classifier.

    Args:
        optim: Section of the config.
        peak_learning_rates: Peak learning rate of each layer group, from the head.
        is_fused: Whether one kernel updates all parameters.

    Raises:
        ConfigError: The optimizer does not take its parameters, or fails with them.
    """
    create = build_creator(optim, is_fused=is_fused)
    check_settable(
        OPTIMIZERS[optim.name].create,
        optim.params,
        sources=RESERVED_PARAMS,
        num_positional=1,
        setting="optim.params",
    )
    check_types(OPTIMIZERS[optim.name].create, optim.params, setting="optim.params")
    with explain_invalid("optim", optim.name, optim.params):
        create([{"params": [torch.zeros(1, requires_grad=True)], "lr": 1.0}])

    def make_optimizer(classifier: ImageClassifier) -> torch.optim.Optimizer:
        groups = build_param_groups(
            classifier.network,
            classifier.groups,
            learning_rates=peak_learning_rates,
            weight_decay=optim.weight_decay,
            head_weight_decay=optim.head_weight_decay,
        )
        optimizer = create(groups)
        if optim.max_norm:
            limits = _find_unit_limits(optim.max_norm, classifier.network, classifier.groups)
            constrain_after_step(optimizer, limits)
        return optimizer

    return make_optimizer


def build_creator(
    optim: ResolvedOptimConfig, *, is_fused: bool
) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """Return a function that makes the optimizer from parameter groups.

    Args:
        optim: Section of the config.
        is_fused: Whether one kernel updates all parameters.
    """
    return partial(
        create_optimizer,
        optim.name,
        momentum=optim.momentum,
        nesterov=optim.nesterov == "on",
        params=optim.params,
        fused=is_fused,
    )


def build_penalty(optim: ResolvedOptimConfig) -> Callable[[ImageClassifier], Tensor] | None:
    """Return the penalty of the weights, added to the loss of each batch; None without one."""
    if not optim.head_l1:
        return None

    def compute_penalty(classifier: ImageClassifier) -> Tensor:
        names = _get_matrix_names(classifier.groups[0])
        return compute_l1_penalty(classifier.network, names, factor=optim.head_l1)

    return compute_penalty


def uses_fused_optimizer(precision: str) -> bool:
    """Return whether the optimizer may be fused.

    With fp16, a fused optimizer would unscale the gradients itself, after they were clipped.
    """
    return precision != "16-mixed"


def check_max_norm(optim: ResolvedOptimConfig, groups: Sequence[LayerGroup]) -> None:
    """Check that the network has the layer groups of ``optim.max_norm``.

    Raises:
        ConfigError: It does not; the message names those that it has.
    """
    names = [group.name for group in groups]
    unknown = next((name for name in optim.max_norm if name not in ("all", *names)), None)
    if unknown is not None:
        raise ConfigError(
            f"optim.max_norm: unknown layer group '{unknown}'. Name one of {', '.join(names)}, or "
            f"all."
        )


def constrain_start(optim: ResolvedOptimConfig, classifier: ImageClassifier, depth: int) -> None:
    """Apply the max-norm constraint to the weights that training starts with, in place.

    Then the weights of every epoch, and those between the start and the last epoch, fulfil it.

    Args:
        optim: Section of the config.
        classifier: Classifier with the weights of the start.
        depth: Layer groups that ever train, from the head.
    """
    groups = classifier.groups[:depth]
    for limit in _find_unit_limits(optim.max_norm, classifier.network, groups):
        apply_max_norm(limit)


def get_head_max_norm(optim: ResolvedOptimConfig) -> float | None:
    """Return the largest norm of the head's rows; None for any."""
    return optim.max_norm.get("head", optim.max_norm.get("all"))


def _find_unit_limits(
    max_norm: Mapping[str, float], network: nn.Module, groups: Sequence[LayerGroup]
) -> list[UnitLimit]:
    """Return the largest norms of units; a group's own takes precedence over "all"."""
    max_norms = {
        name: limit
        for group in groups
        if (limit := max_norm.get(group.name, max_norm.get("all"))) is not None
        for name in group.parameter_names
    }
    return find_unit_limits(network, max_norms)


def _get_matrix_names(group: LayerGroup) -> list[str]:
    """Return the names of a group's parameters without biases and norms."""
    return [name for name in group.parameter_names if name not in group.vector_names]
