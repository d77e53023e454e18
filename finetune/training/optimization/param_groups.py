"""Optimizer parameter groups, with a learning rate per layer group."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    head_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Build two parameter groups per layer group: matrices, and vectors without weight decay.

    Frozen parameters are included: without gradients the optimizer skips them, and no group has to
    be added in the middle of a schedule.

    Args:
        network: Network that owns the parameters.
        groups: Layer groups, ordered from the head.
        learning_rates: Learning rate of each layer group.
        weight_decay: Weight decay of the matrices.
        head_weight_decay: Weight decay of the head's matrices; None for that of the others.
    """
    parameters = dict(network.named_parameters())
    param_groups: list[dict[str, Any]] = []
    for index, (group, rate) in enumerate(zip(groups, learning_rates, strict=True)):
        is_head = index == 0 and head_weight_decay is not None
        decay = head_weight_decay if is_head else weight_decay
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
                    "weight_decay": decay,
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


def get_learning_rates(optimizer: Optimizer) -> Mapping[str, float]:
    """Return the present learning rates by ``lr/<layer group>``."""
    return {
        f"lr/{group['name'].removesuffix(NO_DECAY_SUFFIX)}": float(group["lr"])
        for group in optimizer.param_groups
    }
