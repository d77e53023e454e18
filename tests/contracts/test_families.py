"""Contract of all timm families; a family is added by a row."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.models.backbone import create_network
from finetune.models.classifier import ImageClassifier
from finetune.models.layer_groups import assign_module_groups
from tests.support.networks import copy_state, find_changed, randomise


@dataclass(frozen=True)
class Family:
    """A small network of a family of architectures."""

    name: str
    image_size: int = 32
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    conv_norm: bool = False  # each BatchNorm follows its convolution


FAMILIES = (
    Family("resnet10t", conv_norm=True),
    Family("vgg11", kwargs={"mlp_ratio": 0.02}),
    Family("vgg11_bn", kwargs={"mlp_ratio": 0.02}, conv_norm=True),
    Family("googlenet", conv_norm=True),
    Family("alexnet", image_size=64),
    Family("convnext_zepto_rms"),
    Family("vit_tiny_patch16_224", kwargs={"depth": 3}),
    Family("deit_tiny_distilled_patch16_224", kwargs={"depth": 3}),
    Family("densenet121", kwargs={"block_config": (2, 2, 2, 2)}),
    Family("efficientnet_b0", conv_norm=True),
    Family("mobilenetv3_small_050", conv_norm=True),
    Family("regnetx_002", conv_norm=True),
    Family(
        "swin_tiny_patch4_window7_224",
        image_size=64,
        kwargs={"embed_dim": 24, "depths": (1, 1, 1, 1)},
    ),
    Family("inception_v3", image_size=80, conv_norm=True),
    Family("hgnetv2_b0", conv_norm=True),  # its classifier is in the same module as a convolution
    Family("pit_ti_224"),  # has no group_matcher
    Family("rdnet_tiny", kwargs={"growth_rates": (8,) * 7}),  # has no coarse groups
)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: str(family.name))
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@pytest.fixture(scope="module")
def network(family: Family) -> nn.Module:
    return create_network(
        family.name,
        num_classes=3,
        weights="random",
        image_size=family.image_size,
        kwargs=family.kwargs,
    ).module


@pytest.fixture
def images(family: Family) -> Tensor:
    shape = (4, 3, family.image_size, family.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _compute_features(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        features = network.forward_features(images)  # type: ignore[operator]
        pooled: Tensor = network.forward_head(features, pre_logits=True)  # type: ignore[operator]
    return pooled


def test_layer_groups_partition_the_parameters(network: nn.Module) -> None:
    groups = ImageClassifier(network).groups
    grouped = [name for group in groups for name in group.parameter_names]
    assert sorted(grouped) == sorted(name for name, _ in network.named_parameters())
    for group in groups:
        sizes = [network.get_parameter(name).numel() for name in group.parameter_names]
        assert group.num_parameters == sum(sizes)


def test_layer_groups_have_unique_names(network: nn.Module) -> None:
    names = [group.name for group in ImageClassifier(network).groups]
    assert names[0] == "head"
    assert len(set(names)) == len(names)


def test_head_group_is_the_classifier(network: nn.Module) -> None:
    cfg: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    modules = cfg["classifier"]
    modules = (modules,) if isinstance(modules, str) else modules
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert set(ImageClassifier(network).groups[0].parameter_names) == expected


def test_layer_groups_all_contain_a_matrix(network: nn.Module) -> None:
    groups = ImageClassifier(network).groups
    assert len(groups) >= 3
    for group in groups[1:]:
        assert any(network.get_parameter(name).ndim >= 2 for name in group.parameter_names), (
            group.name
        )


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.conv_norm], ids=lambda f: str(f.name), indirect=True
)
def test_batch_norm_is_in_the_group_of_its_convolution(network: nn.Module) -> None:
    groups = ImageClassifier(network).groups
    group_of = {name: group.name for group in groups for name in group.parameter_names}
    convolution, num_pairs = "", 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            convolution = name
        elif isinstance(module, nn.BatchNorm2d):
            assert group_of[f"{name}.weight"] == group_of[f"{convolution}.weight"], name
            num_pairs += 1
    assert num_pairs


def test_head_is_initialised_to_zero(network: nn.Module, images: Tensor) -> None:
    network.eval()
    assert network(images).shape == (4, 3)
    assert not network(images).any()
    assert _compute_features(network, images).any()


@pytest.mark.runs
@pytest.mark.parametrize("unfrozen", ["head", "two", "all"])
def test_optimizer_step_changes_unfrozen_groups_only(
    network: nn.Module, images: Tensor, unfrozen: str
) -> None:
    model = ImageClassifier(copy.deepcopy(network), batch_norm="train")
    randomise(model.network)
    model.set_depth({"head": 1, "two": 2, "all": len(model.groups)}[unfrozen])
    model.train()
    trained = {name for group in model.groups[: model.depth] for name in group.parameter_names}
    before = copy_state(model.network)

    torch.manual_seed(0)  # for dropout
    # a large step, so that rounding does not hide small gradients
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4, momentum=0.9)
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()  # type: ignore[no-untyped-call]
    optimizer.step()

    moved = find_changed(before, model.network)
    parameters = dict(model.network.named_parameters())
    assert moved & parameters.keys() == trained
    assert {name for name, p in parameters.items() if p.grad is not None} == trained
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
        parameters[name].numel() for name in trained
    )
    live = {name.rpartition(".")[0] for name in trained}
    assert {name.rpartition(".")[0] for name in moved} <= live
    statistics = {n for n in before if n.endswith("running_mean") and n.rpartition(".")[0] in live}
    assert statistics <= moved


@pytest.mark.runs
def test_frozen_features_are_equal_in_train_and_eval_mode(
    network: nn.Module, images: Tensor
) -> None:
    model = ImageClassifier(copy.deepcopy(network), batch_norm="train")
    randomise(model.network)
    is_noisy = False
    group_indices = assign_module_groups(model.network, model.groups)
    for name, module in model.network.named_modules():
        if isinstance(module, nn.Dropout):  # the head's is active at depth 1
            module.p = 0.5 if min(group_indices[name]) > 0 else 0.0
        is_noisy |= isinstance(module, nn.Dropout | nn.BatchNorm2d)
    expected = _compute_features(model.eval().network, images)
    if is_noisy:  # otherwise a layer left in train mode could not be detected
        assert not torch.equal(
            _compute_features(copy.deepcopy(model).train().network, images), expected
        )
    model.set_depth(1)
    before = copy_state(model.network)
    assert torch.equal(_compute_features(model.train().network, images), expected)
    assert not find_changed(before, model.network)
