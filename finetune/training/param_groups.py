"""Optimizer groups: every parameter from step 0, each layer group at its own learning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from finetune.models.groups import LayerGroup

NO_DECAY_SUFFIX = "/no_decay"


def compute_learning_rates(
    num_groups: int, *, lr: float, backbone_scale: float, layer_decay: float
) -> list[float]:
    """Return the peak learning rate of each layer group, counted from the head.

    Args:
        num_groups: Layer groups, the head included.
        lr: Of the head.
        backbone_scale: The last backbone group learns at ``lr`` times this.
        layer_decay: Each group further down learns at this times the one above it.
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
    """Return two optimizer groups a layer group: matrices, and vectors without weight decay.

    Frozen parameters are in it too: without gradients the optimizer passes them over, and no
    group has to be added in the middle of a schedule.
    """
    parameters = dict(network.named_parameters())
    found: list[dict[str, Any]] = []
    for group, rate in zip(groups, learning_rates, strict=True):
        matrices = [
            parameters[name] for name in group.parameter_names if name not in group.vector_names
        ]
        vectors = [parameters[name] for name in group.parameter_names if name in group.vector_names]
        if matrices:
            found.append(
                {
                    "params": matrices,
                    "name": group.name,
                    "lr": rate,
                    "weight_decay": weight_decay,
                }
            )
        if vectors:
            found.append(
                {
                    "params": vectors,
                    "name": group.name + NO_DECAY_SUFFIX,
                    "lr": rate,
                    "weight_decay": 0.0,
                }
            )
    return found


def create_optimizer(
    name: str, groups: list[dict[str, Any]], *, momentum: float, fused: bool = True
) -> Optimizer:
    """Return AdamW, or SGD with Nesterov momentum.

    Args:
        name: "adamw" or "sgd".
        groups: Parameters with their settings.
        momentum: Of SGD.
        fused: One kernel for all parameters. It unscales fp16 gradients by itself, so that
            Lightning cannot clip them.

    Raises:
        KeyError: Another name.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=fused)
    raise KeyError(name)


def get_learning_rates(optimizer: Optimizer) -> Mapping[str, float]:
    """Return ``lr/<layer group>`` to its present learning rate."""
    return {
        f"lr/{group['name'].removesuffix(NO_DECAY_SUFFIX)}": float(group["lr"])
        for group in optimizer.param_groups
    }
