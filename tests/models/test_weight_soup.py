"""Averaged weights, against a plain loop and torch's update of BatchNorm statistics."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from finetune.models.weight_soup import (
    average_networks,
    have_equal_statistics,
    recompute_statistics,
)
from tests.support.networks import randomise, set_batch_norm_statistics


def create_networks(*seeds: int) -> list[nn.Module]:
    first = timm.create_model("test_resnet", num_classes=3)
    networks = []
    for seed in seeds:
        network = copy.deepcopy(first)
        randomise(network, seed=seed)
        networks.append(network.eval())
    return networks


def create_batches(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 32, 32, generator=generator) for size in sizes]


def test_average_networks_equals_mean_of_each_tensor() -> None:
    networks = create_networks(1, 2, 3)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    found = average_networks(networks).state_dict()
    for name, value in found.items():
        values = [state[name] for state in before]
        if value.is_floating_point():
            torch.testing.assert_close(value, sum(values) / 3)
            assert value.dtype == values[0].dtype
        else:
            assert torch.equal(value, values[0])
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_average_of_one_network_is_bit_identical() -> None:
    (network,) = create_networks(1)
    found = average_networks([network]).state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


def test_have_equal_statistics_compares_batch_norm_alone() -> None:
    one, other = create_networks(1, 1)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert have_equal_statistics([one, other])
    set_batch_norm_statistics(other, create_batches(4)[0])
    assert not have_equal_statistics([one, other])
    vit = timm.create_model("test_vit", num_classes=3)
    assert have_equal_statistics([vit, copy.deepcopy(vit)])


def test_recompute_statistics_equals_update_bn() -> None:
    network, reference = create_networks(1, 1)
    batches = create_batches(8, 8, 5)
    momenta = [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    recompute_statistics(network, batches)
    reference.train()
    update_bn(batches, reference)
    reference.eval()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value)
    assert [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_recompute_statistics_replaces_old_ones(name: str) -> None:
    (network,) = create_networks(1)
    before = {k: v.clone() for k, v in network.state_dict().items() if k.endswith(name)}
    recompute_statistics(network, create_batches(8))
    after = network.state_dict()
    assert before
    assert all(not torch.equal(after[key], value) for key, value in before.items())
