"""Tests of ``finetune.saliency.spatial_layer``."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.saliency.spatial_layer import SpatialLayer, find_spatial_layer
from tests.support.networks import create_small_swin, randomise


def _find(network: nn.Module, side: int) -> SpatialLayer | None:
    randomise(network)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return find_spatial_layer(network, images)


@pytest.mark.parametrize(
    ("backbone", "side", "expected"),
    [
        ("test_resnet", 96, SpatialLayer("layer4", "channels_first", 3, 3)),
        # the class token alone is read: the tokens after the last attention have no gradient
        ("test_vit", 160, SpatialLayer("blocks.5.norm1", "tokens", 10, 10)),
        ("test_convnext", 160, SpatialLayer("stages", "channels_first", 5, 5)),
        ("test_efficientnet", 160, SpatialLayer("bn2", "channels_first", 5, 5)),
        # the output of the last stages has fewer than 3 x 3 positions
        ("test_resnet", 32, SpatialLayer("layer3.0.act1", "channels_first", 4, 4)),
    ],
)
def test_layer_of_each_family(backbone: str, side: int, expected: SpatialLayer) -> None:
    assert _find(timm.create_model(backbone, num_classes=3), side) == expected


def test_layer_of_a_swin_has_its_channels_last() -> None:
    assert _find(create_small_swin(), 64) == SpatialLayer("norm", "channels_last", 8, 8)


def test_layer_of_convolutions_and_fully_connected_layers() -> None:
    features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(4))
    network = nn.Sequential(features, nn.Flatten(), nn.Linear(8 * 64, 16), nn.Linear(16, 3))

    assert _find(network, 32) == SpatialLayer("0", "channels_first", 8, 8)


def test_network_without_positions_has_no_layer() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.ReLU(), nn.Linear(16, 3))

    assert _find(network, 8) is None


def test_network_is_left_as_it_is() -> None:
    network: Any = timm.create_model("test_resnet", num_classes=3).train()
    _find(network, 96)

    assert all(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_tokens_are_arranged_row_by_row() -> None:
    layer = SpatialLayer("x", "tokens", 2, 3)
    tokens = torch.arange(7.0).view(1, 7, 1)  # the first one is the class token

    arranged: Tensor = layer.arrange(tokens)

    assert arranged.tolist() == [[[[1, 2, 3], [4, 5, 6]]]]
