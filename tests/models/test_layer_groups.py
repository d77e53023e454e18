"""Layer groups of networks whose groups are known by hand."""

from typing import Any

import pytest
import timm
from torch import Tensor, nn

from finetune.errors import ModelError
from finetune.models.layer_groups import (
    assign_module_groups,
    find_classifier_parameters,
    find_layer_groups,
)


class Handmade(nn.Module):
    """Network whose matcher separates a BatchNorm and puts fc6 in the classifier's group."""

    def __init__(self, *, matcher: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.body = nn.Conv2d(4, 4, 1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.ModuleDict({"fc6": nn.Linear(4, 6), "relu": nn.ReLU()})
        self.head["fc"] = nn.Linear(6, 2)
        if matcher:
            self.group_matcher = self._matcher

    @staticmethod
    def _matcher(coarse: bool = False) -> dict[str, Any]:
        assert coarse
        return {"a": r"^stem", "b": r"^norm", "c": r"^body", "d": r"^head"}

    def get_classifier(self) -> nn.Module:
        return self.head["fc"]

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


HANDMADE_GROUPS = [
    ("head", ("head.fc.weight", "head.fc.bias"), 14),
    ("head.fc6", ("head.fc6.weight", "head.fc6.bias"), 30),
    ("body", ("body.weight", "body.bias"), 20),
    ("stem", ("stem.weight", "stem.bias", "norm.weight", "norm.bias"), 24),
]


def test_find_layer_groups_corrects_separated_norm_and_fc6() -> None:
    groups = find_layer_groups(Handmade())
    assert [(g.name, g.parameter_names, g.num_parameters) for g in groups] == HANDMADE_GROUPS


def test_find_layer_groups_without_matcher_uses_top_level_modules() -> None:
    groups = find_layer_groups(Handmade(matcher=False))
    assert [(g.name, g.parameter_names, g.num_parameters) for g in groups] == HANDMADE_GROUPS


def test_assign_module_groups_parameterless_module_follows_the_one_before() -> None:
    network = Handmade()
    actual = assign_module_groups(network, find_layer_groups(network))
    expected = {
        "": {0, 1, 2, 3},
        "stem": {3},
        "norm": {3},
        "act": {3},
        "body": {2},
        "drop": {2},
        "head": {0, 1},
        "head.fc6": {1},
        "head.relu": {1},
        "head.fc": {0},
    }
    assert actual == expected


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_find_layer_groups_vgg_fc6_and_fc7_are_the_last_backbone_group(name: str) -> None:
    groups = find_layer_groups(timm.create_model(name, num_classes=2, mlp_ratio=0.02))
    layers = ("pre_logits.fc1", "pre_logits.fc2")
    assert groups[1].parameter_names == tuple(
        f"{m}.{p}" for m in layers for p in ("weight", "bias")
    )


def test_find_classifier_parameters_distilled_vit_returns_both_heads() -> None:
    network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=2, depth=1)
    heads = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert find_classifier_parameters(network) == heads


def test_find_layer_groups_without_classifier_raises_model_error() -> None:
    with pytest.raises(ModelError, match=r"ResNet .*classifier"):
        find_layer_groups(timm.create_model("test_resnet", num_classes=0))
