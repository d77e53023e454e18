"""Parameter groups and their learning rates."""

import pytest
import torch
from torch import nn

from finetune.models.backbone import create_network
from finetune.models.layer_groups import find_layer_groups
from finetune.training.optimization.optimizers import create_optimizer
from finetune.training.optimization.param_groups import (
    build_param_groups,
    compute_learning_rates,
    get_learning_rates,
)

BACKBONES = ["test_resnet", "test_vit", "resnet10t", "test_convnext"]


def build_network(name: str) -> nn.Module:
    return create_network(name, num_classes=3, weights="random", image_size=64).module


def test_learning_rates_decay_with_distance_from_head() -> None:
    assert compute_learning_rates(5, lr=0.1, backbone_scale=0.5, layer_decay=0.1) == pytest.approx(
        [0.1, 0.05, 0.005, 0.0005, 0.00005]
    )
    assert compute_learning_rates(3, lr=0.1, backbone_scale=1.0, layer_decay=1.0) == [0.1, 0.1, 0.1]
    assert compute_learning_rates(1, lr=0.1, backbone_scale=0.5, layer_decay=0.5) == [0.1]


@pytest.mark.parametrize("name", BACKBONES)
def test_param_groups_hold_each_parameter_once_at_its_layer_group_rate(name: str) -> None:
    network = build_network(name)
    groups = find_layer_groups(network)
    rates = compute_learning_rates(len(groups), lr=1.0, backbone_scale=0.5, layer_decay=0.9)
    param_groups = build_param_groups(network, groups, learning_rates=rates, weight_decay=0.05)
    parameter_ids = [id(parameter) for group in param_groups for parameter in group["params"]]
    assert sorted(parameter_ids) == sorted(id(parameter) for parameter in network.parameters())

    rate_of = {n: rate for g, rate in zip(groups, rates, strict=True) for n in g.parameter_names}
    names = {id(parameter): n for n, parameter in network.named_parameters()}
    for group in param_groups:
        for parameter in group["params"]:
            assert group["lr"] == rate_of[names[id(parameter)]]
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizer_frozen_parameters_keep_values_and_have_no_state(name: str) -> None:
    network = build_network("test_resnet")
    groups = find_layer_groups(network)
    param_groups = build_param_groups(
        network, groups, learning_rates=[0.1] * len(groups), weight_decay=0.05
    )
    optimizer = create_optimizer(name, param_groups, momentum=0.9)
    head = network.get_classifier()  # type: ignore[operator]
    network.requires_grad_(False)
    head.requires_grad_(True)
    before = [parameter.clone() for parameter in network.parameters()]
    network(torch.randn(2, 3, 32, 32)).square().sum().add(head.bias.sum()).backward()
    optimizer.step()
    changed_parameters = [
        parameter
        for old, parameter in zip(before, network.parameters(), strict=True)
        if not torch.equal(old, parameter)
    ]
    assert changed_parameters
    assert {id(p) for p in changed_parameters} <= {id(p) for p in head.parameters()}
    assert {id(p) for p in optimizer.state} <= {id(p) for p in head.parameters()}


def test_get_learning_rates_returns_present_rates_by_layer_group() -> None:
    network = build_network("test_resnet")
    groups = find_layer_groups(network)
    rates = compute_learning_rates(len(groups), lr=0.1, backbone_scale=0.5, layer_decay=0.5)
    optimizer = create_optimizer(
        "sgd",
        build_param_groups(network, groups, learning_rates=rates, weight_decay=0.0),
        momentum=0.9,
    )
    expected = {f"lr/{group.name}": rate for group, rate in zip(groups, rates, strict=True)}
    assert get_learning_rates(optimizer) == pytest.approx(expected)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    assert get_learning_rates(optimizer) == pytest.approx({n: r / 2 for n, r in expected.items()})
