"""BatchNorm folded into convolutions: same outputs, the network unchanged, the exceptions."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers.std_conv import ScaledStdConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.models import torchvision_models
from finetune.models.batch_norm_folding import fold_batch_norm
from finetune.models.graph_split import split_last_groups
from tests.support.networks import randomise


def create(family: str, **settings: Any) -> nn.Module:
    torchvision_models.register()
    network: nn.Module = timm.create_model(family, num_classes=3, **settings).eval()
    randomise(network)
    return network


def make_images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def assert_same_outputs(folded: nn.Module, network: nn.Module, *, side: int = 64) -> None:
    """Check that both have the same outputs; in float64, where rounding hides no difference."""
    images = make_images(side).double()
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-6, atol=1e-8)


def count_batch_norms(network: nn.Module) -> int:
    return sum(isinstance(layer, _BatchNorm) for layer in network.modules())


@pytest.mark.parametrize(
    ("family", "num_left"),
    [
        ("test_resnet", 0),
        ("test_efficientnet", 0),
        ("resnet18", 0),
        ("tf_efficientnet_lite0", 0),
        ("googlenet", 0),
        ("densenet121", 62),  # BatchNorm before the convolution
        ("repvgg_a0", 17),  # BatchNorm without a convolution
    ],
)
def test_fold_batch_norm_output_equals_the_network(family: str, num_left: int) -> None:
    network = create(family).double()
    folded = fold_batch_norm(network)
    assert folded is not None
    assert count_batch_norms(network) > count_batch_norms(folded) == num_left
    assert_same_outputs(folded, network)


def test_fold_batch_norm_with_same_padding_equals_the_network() -> None:
    network = create("mobilenetv2_100", pad_type="same").double()
    folded = fold_batch_norm(network)
    assert folded is not None
    assert count_batch_norms(folded) == 0
    assert_same_outputs(folded, network, side=61)


def test_fold_batch_norm_leaves_the_network_unchanged() -> None:
    network = create("test_efficientnet")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    layers = {name: id(layer) for name, layer in network.named_modules()}
    folded = fold_batch_norm(network)
    assert folded is not None
    with torch.inference_mode():
        folded(make_images())
    assert {name: id(layer) for name, layer in network.named_modules()} == layers
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("family", ["test_resnet", "test_efficientnet", "resnet18", "densenet121"])
def test_fold_batch_norm_returns_the_output_of_the_inner_node(family: str, depth: int) -> None:
    network = create(family).double()
    split = split_last_groups(network, depth)
    assert split is not None
    folded = fold_batch_norm(network, inner_node=split.node_name)
    assert folded is not None
    images = make_images().double()
    with torch.inference_mode():
        logits, activations = folded(images)
        torch.testing.assert_close(activations, split.trunk(images), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(logits, network(images), rtol=1e-6, atol=1e-8)


class Branches(nn.Module):
    """Network whose convolution is followed by a BatchNorm and used a second time, or not."""

    def __init__(self, *, is_used_twice: bool, make_conv: Callable[..., nn.Conv2d]) -> None:
        super().__init__()
        self.conv = make_conv(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.is_used_twice = is_used_twice

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        normed: Tensor = self.norm(maps)
        return normed + maps if self.is_used_twice else normed + 1


@pytest.mark.parametrize(
    ("is_used_twice", "make_conv", "is_folded"),
    [
        (False, nn.Conv2d, True),
        (True, nn.Conv2d, False),
        (False, ScaledStdConv2d, False),  # standardises its weight in each forward pass
    ],
)
def test_fold_batch_norm_only_where_the_pair_is_one_operation(
    is_used_twice: bool, make_conv: Callable[..., nn.Conv2d], is_folded: bool
) -> None:
    network = Branches(is_used_twice=is_used_twice, make_conv=make_conv).eval()
    randomise(network)
    folded = fold_batch_norm(network)
    assert (folded is not None) == is_folded
    if folded is not None:
        images = make_images()
        torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["test_vit", "test_convnext"])
def test_fold_batch_norm_of_a_network_without_it_returns_none(family: str) -> None:
    assert fold_batch_norm(create(family)) is None


def test_fold_batch_norm_of_an_untraceable_network_returns_none() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, images: Tensor) -> Tensor:
            normed: Tensor = self.norm(self.conv(images))
            return normed if normed.mean() > 0 else -normed

    assert fold_batch_norm(Untraceable().eval()) is None
