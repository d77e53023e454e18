"""Averages of the weights of networks with the same architecture (model soups)."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_STATISTICS = ("running_mean", "running_var")


def average_networks(networks: Sequence[nn.Module]) -> nn.Module:
    """Return a network whose parameters and buffers are the mean of those of several.

    Model soups (Wortsman et al. 2022, section 2, https://arxiv.org/abs/2203.05482). Means are
    computed in float64; integers, such as the counters of BatchNorm, are those of the first.

    Args:
        networks: Networks of the same architecture.
    """
    states = [network.state_dict() for network in networks]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
    network = copy.deepcopy(networks[0])
    network.load_state_dict(mean)
    return network.eval()


def have_equal_statistics(networks: Sequence[nn.Module]) -> bool:
    """Return whether the BatchNorm statistics of networks are equal, or they have none.

    They are those of pretraining in networks that were trained with frozen statistics.
    """
    first, *others = [_get_statistics(network) for network in networks]
    return all(torch.equal(value, other[name]) for other in others for name, value in first.items())


def recompute_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the BatchNorm statistics of a network to those of batches, each counting alike.

    The mean of several networks' statistics is not that of the activations of their mean network
    (Izmailov et al. 2018, section 3.2, https://arxiv.org/abs/1803.05407).

    Args:
        network: Network, changed in place.
        batches: Normalised images, each of shape (B, C, H, W).
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean
        layer.train()
    try:
        with torch.inference_mode():
            for images in batches:
                network(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()


def _get_statistics(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in network.state_dict().items()
        if name.rpartition(".")[2] in _STATISTICS
    }
