"""Costs of each layer: parameters, multiply-adds and tensors kept for the backward pass."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from finetune.models.classifier import ImageClassifier
from finetune.models.costs.layer_costs import LOSS, LayerCost, measure_layers


def create_network(name: str, *, device: str = "cpu", **options: Any) -> nn.Module:
    with torch.device(device):
        network: nn.Module = timm.create_model(name, **options)
    return network.train()


def measure(network: nn.Module, *, side: int, device: str = "cpu") -> tuple[LayerCost, ...]:
    def run(batch_size: int) -> Tensor:
        images = torch.zeros(batch_size, 3, side, side, device=device)
        return cross_entropy(
            network(images), torch.zeros(batch_size, dtype=torch.long, device=device)
        )

    return measure_layers(network, run, run)


def sum_of(layers: tuple[LayerCost, ...], get: Callable[[LayerCost], int]) -> int:
    return sum(map(get, layers))


def test_measure_layers_of_vgg16_has_the_numbers_of_the_textbook() -> None:
    layers = measure(create_network("vgg16", device="meta"), side=224, device="meta")
    by_name = {layer.name: layer for layer in layers}
    assert sum_of(layers, lambda layer: layer.num_parameters) == 138_357_544
    assert sum_of(layers, lambda layer: layer.num_macs) == pytest.approx(15.47e9, rel=1e-3)
    first = by_name["features.0"]
    assert first.output_shape == (64, 224, 224)
    assert first.num_parameters == 3 * 3 * 3 * 64 + 64
    assert first.num_macs == 3 * 3 * 3 * 64 * 224 * 224
    # most parameters are those of the first dense layer, most activations those after conv1
    largest = max(layers, key=lambda layer: layer.num_parameters)
    assert (largest.name, largest.num_parameters) == ("pre_logits.fc1", 7 * 7 * 512 * 4096 + 4096)
    assert max(layers, key=lambda layer: layer.activation_bytes).name in (
        "features.1",
        "features.3",
    )
    assert by_name["features.1"].num_activations == 64 * 224 * 224
    assert by_name["features.1"].activation_bytes == 4 * 64 * 224 * 224


def count_macs_by_hand(network: nn.Module, side: int) -> int:
    """Return the multiply-adds of convolutions and linear layers, from their shapes."""
    total = 0

    def count(module: Any, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            per_output = math.prod(module.kernel_size) * module.in_channels // module.groups
        else:
            per_output = module.in_features
        total += per_output * output[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(2, 3, side, side))
    return total


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv2_100", "test_efficientnet", "densenet121", "test_convnext"]
)
def test_measure_layers_macs_equal_those_by_hand_and_of_torch(name: str) -> None:
    layers = measure(create_network(name), side=64)
    actual = sum_of(layers, lambda layer: layer.num_macs)
    assert actual == count_macs_by_hand(create_network(name), 64)
    network = create_network(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 64, 64))
    assert actual == counter.get_total_flops() // 2


def test_measure_layers_counts_the_products_of_attention() -> None:
    layers = measure(create_network("test_vit", img_size=64), side=64)
    attention = next(layer for layer in layers if layer.name == "blocks.0.attn")
    # 16 patches and the class token, width 64: scores and their product with the values
    assert attention.num_macs == 2 * 17 * 17 * 64
    assert sum_of(layers, lambda layer: layer.num_parameters) == sum(
        parameter.numel() for parameter in create_network("test_vit", img_size=64).parameters()
    )


def measure_kept_bytes(network: nn.Module, batch_size: int) -> int:
    """Return the bytes that autograd keeps, by a plain hook that holds every tensor."""
    kept: dict[int, Tensor] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = network(torch.zeros(batch_size, 3, 64, 64))
        loss = cross_entropy(logits, torch.zeros(batch_size, dtype=torch.long))
    del loss
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)


@pytest.mark.parametrize("name", ["resnet18", "test_convnext", "mobilenetv2_100"])
def test_measure_layers_activations_equal_what_autograd_keeps(name: str) -> None:
    layers = measure(create_network(name), side=64)
    for batch_size in (4, 6):
        expected = measure_kept_bytes(create_network(name), batch_size)
        actual = sum_of(layers, lambda layer, size=batch_size: layer.compute_bytes(size))  # type: ignore[misc]
        assert actual == pytest.approx(expected, rel=0.001)


def test_measure_layers_frozen_groups_keep_no_activations() -> None:
    classifier = ImageClassifier(create_network("resnet18", num_classes=3))
    everything = measure(classifier.network, side=64)
    classifier.set_depth(2)
    classifier.train()
    kept = {layer.name for layer in measure(classifier.network, side=64) if layer.activation_bytes}
    assert kept
    assert all(name.startswith(("layer4", "fc", "global_pool", LOSS)) for name in kept)
    assert any(layer.name == "layer1.0.conv1" and layer.activation_bytes for layer in everything)


def test_measure_layers_counts_shared_parameters_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.unused = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.second(self.first(x))
            return output

    network = Shared()

    def run(batch_size: int) -> Tensor:
        output: Tensor = network(torch.zeros(batch_size, 4)).sum()
        return output

    layers = {layer.name: layer for layer in measure_layers(network, run, run)}
    assert [layers[name].num_parameters for name in ("first", "second", "unused")] == [20, 4, 12]
    assert [layers[name].num_macs for name in ("first", "second", "unused")] == [16, 16, 0]
