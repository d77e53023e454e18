"""Optimizer parameter groups, with a learning rate per layer group, and the optimizers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from finetune.models.layer_groups import LayerGroup

NO_DECAY_SUFFIX = "/no_decay"


def compute_learning_rates(
    num_groups: int, *, lr: float, backbone_scale: float, layer_decay: float
) -> list[float]:
    """Compute the peak learning rate of each layer group, ordered from the head.

    Args:
        num_groups: Number of layer groups, including the head.
        lr: Learning rate of the head.
        backbone_scale: Factor of ``lr`` for the last backbone group.
        layer_decay: Factor of each group's rate relative to the group above it.
    """
    distances = range(num_groups - 1)
    return [lr, *(lr * backbone_scale * layer_decay**distance for distance in distances)]


def build_param_groups(
    network: nn.Module,
    groups: Sequence[LayerGroup],
    *,
    learning_rates: Sequence[float],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Build two parameter groups per layer group: matrices, and vectors without weight decay.

    Frozen parameters are included: without gradients the optimizer skips them, and no group has to
    be added in the middle of a schedule.

    Args:
        network: Network that owns the parameters.
        groups: Layer groups, ordered from the head.
        learning_rates: Learning rate of each layer group.
        weight_decay: Weight decay of the matrices.
    """
    parameters = dict(network.named_parameters())
    param_groups: list[dict[str, Any]] = []
    for group, rate in zip(groups, learning_rates, strict=True):
        matrices = [
            parameters[name] for name in group.parameter_names if name not in group.vector_names
        ]
        vectors = [parameters[name] for name in group.parameter_names if name in group.vector_names]
        if matrices:
            param_groups.append(
                {
                    "params": matrices,
                    "name": group.name,
                    "lr": rate,
                    "weight_decay": weight_decay,
                }
            )
        if vectors:
            param_groups.append(
                {
                    "params": vectors,
                    "name": group.name + NO_DECAY_SUFFIX,
                    "lr": rate,
                    "weight_decay": 0.0,
                }
            )
    return param_groups


def create_optimizer(
    name: str, groups: list[dict[str, Any]], *, momentum: float, fused: bool = True
) -> Optimizer:
    """Create AdamW, or SGD with Nesterov momentum.

    Args:
        name: "adamw" or "sgd".
        groups: Parameter groups.
        momentum: Momentum of SGD.
        fused: Whether one kernel updates all parameters. A fused optimizer unscales fp16 gradients
            itself, so that Lightning cannot clip them.

    Raises:
        KeyError: ``name`` is neither.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=fused)
    raise KeyError(name)


def get_learning_rates(optimizer: Optimizer) -> Mapping[str, float]:
    """Return the present learning rates by ``lr/<layer group>``."""
    return {
        f"lr/{group['name'].removesuffix(NO_DECAY_SUFFIX)}": float(group["lr"])
        for group in optimizer.param_groups
    }
