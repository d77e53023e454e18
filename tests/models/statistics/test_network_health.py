"""Tests of ``finetune.models.statistics``, with plain loops as the reference."""

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.models.custom.contract import supply_contract
from finetune.models.layer_groups import find_layer_groups
from finetune.models.statistics.layer_weights import compute_changes, find_weighted_layers
from finetune.models.statistics.network_health import (
    LayerStatistics,
    measure_gradients,
    measure_layers_health,
)
from tests.support.networks import copy_state, find_changed, randomise

NUM_IMAGES = 6


class FaultyNetwork(nn.Module):
    """Convolutions with dead, saturated and duplicate channels; activations are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 10, 1)
        self.gate = nn.Sigmoid()
        self.fc = nn.Linear(10, 4)
        with torch.no_grad():
            assert self.conv1.bias is not None
            assert self.conv2.bias is not None
            assert self.conv3.bias is not None
            self.conv1.bias[:2] = -1e4  # dead
            self.conv1.weight[3] = self.conv1.weight[2]  # the same map
            self.conv1.bias[3] = self.conv1.bias[2]
            self.conv2.bias[:3] = 1e4  # saturated
            self.conv3.bias[0] = -1e4  # dead although GELU is not exactly zero there

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 4)."""
        hidden = functional.relu(self.conv1(images))
        hidden = self.gate(self.conv2(hidden))
        hidden = functional.gelu(self.conv3(hidden))
        logits: Tensor = self.fc(hidden.mean((2, 3)))
        return logits


def _build_faulty() -> nn.Module:
    torch.manual_seed(3)
    network = FaultyNetwork()
    supply_contract("faulty:net", network, num_classes=4, in_chans=3, image_size=16)
    return network


def _measure(network: nn.Module, images: Tensor) -> dict[str, LayerStatistics]:
    labels = torch.zeros(len(images), dtype=torch.int64)
    layers = measure_layers_health(
        network,
        find_layer_groups(network),
        lambda first, last: (images[first:last], labels[first:last]),
        num_images=len(images),
        batch_size=4,
    )
    return {layer.name: layer for layer in layers}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(NUM_IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_dead_saturated_and_duplicate_channels_are_counted(images: Tensor) -> None:
    layers = _measure(_build_faulty(), images)

    assert list(layers) == ["conv1 (relu)", "gate", "conv3 (gelu)"]
    relu, gate, gelu = layers.values()
    assert (relu.units, relu.dead, relu.saturated) == (8, 2 / 8, None)
    assert (gate.kind, gate.dead, gate.saturated) == ("sigmoid", None, 3 / 6)
    assert (gelu.dead, gelu.group) == (1 / 10, "conv3")
    # of the 6 channels that vary, one pair is the same map
    assert relu.correlated_pairs is not None
    assert relu.correlated_pairs >= 1 / 15


def test_statistics_equal_those_of_a_plain_loop(images: Tensor) -> None:
    network = _build_faulty()
    layer = _measure(network, images)["conv1 (relu)"]

    with torch.no_grad():
        output = functional.relu(network.conv1(images)).double().numpy()  # type: ignore[operator]
    maps = [output[:, channel].ravel() for channel in range(output.shape[1])]
    assert layer.std == pytest.approx(math.sqrt(np.mean([m.var() for m in maps])), rel=1e-5)
    # of each image the same 64 evenly spaced positions of 256
    positions = np.round(np.linspace(0, 255, 64)).astype(int)
    rows = [m.reshape(NUM_IMAGES, -1)[:, positions].ravel() for m in maps if m.any()]
    pairs = [
        abs(np.corrcoef(rows[first], rows[second])[0, 1])
        for first in range(len(rows))
        for second in range(first)
    ]
    assert layer.mean_abs_correlation == pytest.approx(np.mean(pairs), rel=1e-4)
    assert layer.correlated_pairs == pytest.approx(np.mean([r > 0.9 for r in pairs]))


@pytest.mark.parametrize(
    ("backbone", "activation", "stage", "width"),
    [
        ("test_resnet", "layer4.0.act2", "layer4", 96),
        ("test_vit", "blocks.5.mlp.act", "blocks.5", 64),  # tokens
        ("test_convnext", "stages.3.blocks.1.mlp.act", "stages.3", 64),  # channels last inside
        ("test_efficientnet", "bn2.act", "blocks.4", 64),
    ],
)
def test_layers_of_each_family_are_found(
    backbone: str, activation: str, stage: str, width: int
) -> None:
    network: Any = timm.create_model(backbone, num_classes=3).eval()
    side = network.default_cfg["input_size"][-1]
    layers = _measure(network, torch.randn(2, 3, side, side))

    assert activation in layers
    assert layers[activation].dead is not None
    assert (layers[stage].kind, layers[stage].units) == ("stage", width)


def test_calls_of_one_module_are_told_apart(images: Tensor) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
            self.act = nn.ReLU6()
            self.fc = nn.Linear(5, 4)
            assert self.conv2.bias is not None
            nn.init.constant_(self.conv2.bias, 100.0)

        def forward(self, images: Tensor) -> Tensor:
            hidden = self.act(self.conv2(self.act(self.conv1(images))))
            logits: Tensor = self.fc(hidden.mean((2, 3)))
            return logits

    network = Shared()
    supply_contract("shared:net", network, num_classes=4, in_chans=3, image_size=16)
    layers = _measure(network, images)

    assert {name: layer.units for name, layer in layers.items()} == {"act": 4, "act 2": 5}
    assert (layers["act 2"].dead, layers["act 2"].saturated) == (0, 1)
    assert layers["act 2"].correlated_pairs is None, "no map varies"


def test_network_and_generator_stay_as_they_are(images: Tensor) -> None:
    network: Any = timm.create_model("test_resnet", num_classes=4, drop_rate=0.5)
    network.train()
    network.conv1.requires_grad_(False)
    before, random_state = copy_state(network), torch.get_rng_state()
    modes = [module.training for module in network.modules()]

    _measure(network, images)
    measure_gradients(network, find_layer_groups(network), images, torch.zeros(6).long())

    assert find_changed(before, network) == set()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == {
        name for name, _ in network.named_parameters() if name.startswith("conv1.")
    }
    assert not any(module._forward_hooks for module in network.modules())


def test_gradients_equal_those_of_a_backward_pass(images: Tensor) -> None:
    network: Any = timm.create_model("test_resnet", num_classes=4)
    randomise(network)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    gradients = measure_gradients(network, find_layer_groups(network), images, labels)

    functional.cross_entropy(network.eval()(images), labels).backward()  # type: ignore[no-untyped-call]
    assert len(gradients) == 16
    for gradient in gradients:
        weight: Any = network.get_submodule(gradient.name).weight
        assert gradient.norm == pytest.approx(float(weight.grad.norm()), rel=1e-4)
        assert gradient.relative_norm == pytest.approx(
            float(weight.grad.norm() / weight.detach().norm()), rel=1e-4
        )


def test_gradients_of_labels_that_do_not_exclude_each_other(images: Tensor) -> None:
    network: Any = timm.create_model("test_resnet", num_classes=4)
    randomise(network)
    labels = torch.tensor([[0.0, 1, 0, 1]]).repeat(6, 1)
    head = measure_gradients(network, find_layer_groups(network), images, labels)[-1]

    loss = functional.binary_cross_entropy_with_logits(network.eval()(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    assert head.name == "fc"
    assert head.norm == pytest.approx(float(network.fc.weight.grad.norm()), rel=1e-4)


def test_changes_are_relative_to_the_start() -> None:
    network: Any = timm.create_model("test_resnet", num_classes=4)
    randomise(network)
    start = copy_state(network)
    with torch.no_grad():
        network.layer4[0].conv1.weight.mul_(1.25)
        network.fc.weight.add_(torch.ones_like(network.fc.weight))
    layers = find_weighted_layers(network, find_layer_groups(network))
    changes = dict(
        zip(
            [layer.name for layer in layers],
            compute_changes(layers, start, dict(network.named_parameters())),
            strict=True,
        )
    )

    assert changes["layer4.0.conv1"] == pytest.approx(0.25, rel=1e-5)
    norm = float(start["fc.weight"].norm())
    assert changes["fc"] == pytest.approx(math.sqrt(4 * 96) / norm, rel=1e-5)
    assert changes["layer1.0.conv1"] == 0


def test_change_from_zero_weights_is_undefined() -> None:
    network: Any = timm.create_model("test_resnet", num_classes=4)
    nn.init.zeros_(network.fc.weight)
    start = copy_state(network)
    nn.init.ones_(network.fc.weight)
    layers = find_weighted_layers(network, find_layer_groups(network))

    assert compute_changes(layers, start, dict(network.named_parameters()))[-1] is None
