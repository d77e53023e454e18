"""Weights of layers: how far they moved, and how large their gradients are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from finetune.models.layer_groups import LayerGroup


@dataclass(frozen=True, slots=True)
class WeightedLayer:
    """A layer with weights of two or more dimensions.

    Attributes:
        name: Path of its module.
        group: Its layer group.
        parameter_names: Names of these weights in the network.
    """

    name: str
    group: str
    parameter_names: tuple[str, ...]


def find_weighted_layers(
    network: nn.Module, groups: Sequence[LayerGroup]
) -> tuple[WeightedLayer, ...]:
    """Return the layers with weights of two or more dimensions, in the order of the network.

    Vectors, such as biases and the scales of normalization layers, are left out. Of shared weights,
    only the first layer has them.
    """
    group_names = {name: group.name for group in groups for name in group.parameter_names}
    parameters = dict(network.named_parameters())  # each once
    layers = []
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        own = [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)]
        names = tuple(name for name in own if name in parameters and parameters[name].ndim > 1)
        if names:
            layers.append(WeightedLayer(path or names[0], group_names[names[0]], names))
    return tuple(layers)


def compute_norms(
    layers: Sequence[WeightedLayer], tensors: Mapping[str, Tensor]
) -> Iterator[float]:
    """Yield the norm of the tensors of each layer's parameters."""
    for layer in layers:
        yield _compute_norm([tensors[name] for name in layer.parameter_names])


def compute_changes(
    layers: Sequence[WeightedLayer], start: Mapping[str, Tensor], end: Mapping[str, Tensor]
) -> list[float | None]:
    """Return the norm of each layer's change relative to its start; None where that is zero.

    Args:
        layers: Layers.
        start: Weights at the start by name, on the CPU.
        end: Weights at the end, which may be on another device.
    """
    changes: list[float | None] = []
    for layer in layers:
        own = [start[name].detach().cpu() for name in layer.parameter_names]
        moved = [end[name].detach().cpu() for name in layer.parameter_names]
        norm = _compute_norm(own)
        change = _compute_norm([b - a for a, b in zip(own, moved, strict=True)])
        changes.append(change / norm if norm > 0 else None)
    return changes


def _compute_norm(tensors: Sequence[Tensor]) -> float:
    """Return the norm of all elements together."""
    norms = [float(vector_norm(tensor, dtype=torch.float64)) for tensor in tensors]
    return math.hypot(*norms)
