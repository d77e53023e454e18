"""Split of networks of many families before their last layer groups, with identical outputs."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.models import torchvision_models
from finetune.models.classifier import ImageClassifier
from finetune.models.graph_split import split_before, split_last_groups
from finetune.models.layer_groups import find_layer_groups
from tests.support.networks import randomise

FAMILIES: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_vit": {},
    "test_efficientnet": {},
    "test_convnext": {},
    "resnet18": {},
    "alexnet": {},
    "googlenet": {},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "mobilenetv2_100": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "embed_dim": 24, "depths": (2, 2, 2, 2)},
    "levit_128s": {},
    "efficientformer_l1": {},
}
"""Arguments of a small network of each family."""

FIXED_SIZES = {"test_vit": 160, "levit_128s": 224, "efficientformer_l1": 224}
"""Sides of the images of networks that take no smaller ones, in pixels."""


def create(family: str) -> nn.Module:
    torchvision_models.register()
    return timm.create_model(family, num_classes=3, **FAMILIES[family]).eval()


def make_images(family: str) -> Tensor:
    side = FIXED_SIZES.get(family, 64)
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.runs
@pytest.mark.parametrize("family", FAMILIES)
def test_split_last_groups_output_equals_the_network(family: str) -> None:
    network = create(family)
    randomise(network)
    images = make_images(family)
    with torch.no_grad():
        expected = network(images)
    for depth in (1, 2, 3):
        split = split_last_groups(network, depth)
        assert split is not None, depth
        with torch.no_grad():
            found = split.last_stage(split.trunk(images))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=f"depth {depth}")


@pytest.mark.parametrize("family", ["test_resnet", "test_vit", "alexnet", "googlenet"])
def test_split_last_groups_puts_their_parameters_in_the_last_stage_only(family: str) -> None:
    network = create(family)
    split = split_last_groups(network, 2)
    assert split is not None
    trained = {name for group in find_layer_groups(network)[:2] for name in group.parameter_names}
    assert trained.isdisjoint(name for name, _ in split.trunk.named_parameters())
    with torch.no_grad():
        activations = split.trunk(make_images(family))
    split.last_stage(activations).sum().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    assert reached == trained


def test_split_last_groups_dropout_follows_the_mode_at_the_split() -> None:
    network = timm.create_model("test_resnet", num_classes=3, drop_rate=0.5)
    classifier = ImageClassifier(network)
    classifier.set_depth(2)
    in_train, in_eval = (
        split_last_groups(classifier.train(mode).network, 2) for mode in (True, False)
    )
    assert in_train is not None
    assert in_eval is not None
    assert in_train.node_name == in_eval.node_name
    with torch.no_grad():
        activations = in_eval.trunk(make_images("test_resnet"))
        assert torch.equal(in_eval.last_stage(activations), in_eval.last_stage(activations))
        assert not torch.equal(in_train.last_stage(activations), in_train.last_stage(activations))


def test_split_last_groups_all_groups_returns_none() -> None:
    network = timm.create_model("test_resnet", num_classes=3).eval()
    assert split_last_groups(network, len(find_layer_groups(network))) is None


class _DataDependent(nn.Module):
    """Network with data-dependent control flow, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        activations: Tensor = self.first(images)
        logits: Tensor = self.last(activations if activations.sum() > 0 else -activations)
        return logits


def test_split_before_untraceable_network_returns_none() -> None:
    assert split_before(_DataDependent(), ["last.weight", "last.bias"]) is None


@pytest.mark.runs
@pytest.mark.parametrize("family", ["levit_128s", "efficientformer_l1", "test_vit"])
def test_split_last_groups_leaves_the_network_unchanged(family: str) -> None:
    network = create(family)
    randomise(network)
    images = make_images(family)
    with torch.no_grad():
        before = network(images)
    attributes = {name: set(vars(module)) for name, module in network.named_modules()}
    modes = [module.training for module in network.modules()]
    splits = [split_last_groups(network, 2) for _ in range(2)]
    assert attributes == {name: set(vars(module)) for name, module in network.named_modules()}
    assert modes == [module.training for module in network.modules()]
    # values that the network cached in an earlier pass are not constants of the split
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.9)
        network.train().eval()
        after = network(images)
        assert not torch.equal(before, after)
        for split in splits:
            assert split is not None
            torch.testing.assert_close(split.last_stage(split.trunk(images)), after, rtol=0, atol=0)
