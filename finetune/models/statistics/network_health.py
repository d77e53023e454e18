"""Statistics of the layers of a network on a sample of images, and the gradients of its weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune.models.classifier import eval_mode
from finetune.models.layer_groups import LayerGroup
from finetune.models.statistics.layer_observer import LayerObserver, ObservedLayer
from finetune.models.statistics.layer_weights import (
    WeightedLayer,
    compute_norms,
    find_weighted_layers,
)

LoadBatch = Callable[[int, int], tuple[Tensor, Tensor]]
"""Function from the first and the last row, exclusive, to normalised images and labels."""


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Statistics of a layer; None where they are undefined or not finite.

    Attributes:
        name: Layer, see ``ObservedLayer``.
        kind: Kind of the activation, or ``STAGE`` for the output of a layer group.
        group: Layer group.
        units: Number of its channels.
        dead: Fraction of units whose output never matters.
        saturated: Fraction of units that nearly always are at a flat end of the activation.
        mean_abs_correlation: Mean absolute correlation of pairs of channels.
        correlated_pairs: Fraction of pairs with an absolute correlation above 0.9.
        std: Root mean square over channels of their standard deviations.
    """

    name: str
    kind: str
    group: str
    units: int
    dead: float | None
    saturated: float | None
    mean_abs_correlation: float | None
    correlated_pairs: float | None
    std: float | None

    def to_json(self) -> dict[str, str | int | float | None]:
        """Return the statistics as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LayerGradient:
    """Gradient of a layer's weights.

    Attributes:
        name: Layer.
        group: Its layer group.
        norm: Norm of the gradient of the mean log loss; None if it is not finite.
        relative_norm: The norm divided by that of the weights; None where these are zero.
    """

    name: str
    group: str
    norm: float | None
    relative_norm: float | None

    def to_json(self) -> dict[str, str | float | None]:
        """Return the gradient as JSON values."""
        return asdict(self)


def measure_layers_health(
    network: nn.Module,
    groups: Sequence[LayerGroup],
    load_batch: LoadBatch,
    *,
    num_images: int,
    batch_size: int,
) -> tuple[LayerStatistics, ...]:
    """Measure the layers in eval mode, without gradients; the network is left as it is.

    Args:
        network: Network from images (B, C, H, W) to logits (B, K).
        groups: Its layer groups.
        load_batch: Function that loads images, on the device of the network.
        num_images: Images of the sample.
        batch_size: Images of a forward pass.
    """
    observer = LayerObserver(network, groups)
    with _keep_unchanged(network), torch.no_grad():
        for first in range(0, num_images, batch_size):
            images, _ = load_batch(first, min(num_images, first + batch_size))
            with observer.observe():
                network(images)
    return tuple(_summarize(layer) for layer in observer.layers.values())


def measure_gradients(
    network: nn.Module, groups: Sequence[LayerGroup], images: Tensor, labels: Tensor
) -> tuple[LayerGradient, ...]:
    """Measure the gradient of the plain log loss in eval mode by layer, frozen ones, too.

    Args:
        network: Network from images (B, C, H, W) to logits (B, K).
        groups: Its layer groups.
        images: Normalised images, shape (B, C, H, W).
        labels: Class indices, shape (B,), or 1 for each label of multi-label images, (B, K).
    """
    layers = find_weighted_layers(network, groups)
    weights = {n: p for n, p in network.named_parameters() if p.is_floating_point()}
    names = [name for layer in layers for name in layer.parameter_names]
    with _keep_unchanged(network), torch.enable_grad():
        for parameter in weights.values():
            parameter.requires_grad_(True)
        logits = network(images).float()
        if labels.is_floating_point():
            loss = binary_cross_entropy_with_logits(logits, labels)
        else:
            loss = cross_entropy(logits, labels)
        gradients = torch.autograd.grad(
            loss, [weights[name] for name in names], allow_unused=True, materialize_grads=True
        )
    by_name = dict(zip(names, gradients, strict=True))
    norms = zip(
        layers,
        compute_norms(layers, by_name),
        compute_norms(layers, {name: weights[name].detach() for name in names}),
        strict=True,
    )
    return tuple(_build_gradient(layer, norm, weight) for layer, norm, weight in norms)


@contextmanager
def _keep_unchanged(network: nn.Module) -> Iterator[None]:
    """Set eval mode in the block, and restore the modes, trainable weights and generators."""
    flags = {parameter: parameter.requires_grad for parameter in network.parameters()}
    devices = {parameter.device for parameter in flags if parameter.is_cuda}
    with torch.random.fork_rng(list(devices)), eval_mode(network):
        try:
            yield
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)


def _build_gradient(layer: WeightedLayer, norm: float, weight: float) -> LayerGradient:
    relative = norm / weight if weight > 0 else None
    return LayerGradient(layer.name, layer.group, _drop_nan(norm), _drop_nan(relative))


def _summarize(layer: ObservedLayer) -> LayerStatistics:
    statistics = layer.statistics
    correlations = statistics.compute_correlations() or (None, None)
    return LayerStatistics(
        layer.name,
        statistics.kind,
        layer.group,
        statistics.num_channels,
        dead=_drop_nan(statistics.compute_dead_fraction()),
        saturated=_drop_nan(statistics.compute_saturated_fraction()),
        mean_abs_correlation=_drop_nan(correlations[0]),
        correlated_pairs=_drop_nan(correlations[1]),
        std=_drop_nan(statistics.compute_deviation()),
    )


def _drop_nan(value: float | None) -> float | None:
    """Return a finite number as it is, and None for others, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None
