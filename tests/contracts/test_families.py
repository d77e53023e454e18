"""What every timm family must do; a family is added by a row."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.models.backbone import create_network
from finetune.models.classifier import ImageClassifier
from finetune.models.groups import assign_module_groups
from tests.support.networks import changed, one_thread, randomise, snapshot


@dataclass(frozen=True)
class Family:
    """A member of the family, made small."""

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
    Family("hgnetv2_b0", conv_norm=True),  # its classifier shares a module with a convolution
    Family("pit_ti_224"),  # has no group_matcher
    Family("rdnet_tiny", kwargs={"growth_rates": (8,) * 7}),  # has no coarse groups
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


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


def _features(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        features = network.forward_features(images)  # type: ignore[operator]
        pooled: Tensor = network.forward_head(features, pre_logits=True)  # type: ignore[operator]
    return pooled


def test_each_parameter_is_in_one_group(network: nn.Module) -> None:
    groups = ImageClassifier(network).groups
    grouped = [name for group in groups for name in group.parameter_names]
    assert sorted(grouped) == sorted(name for name, _ in network.named_parameters())
    for group in groups:
        sizes = [network.get_parameter(name).numel() for name in group.parameter_names]
        assert group.num_parameters == sum(sizes)


def test_groups_have_names_of_their_own(network: nn.Module) -> None:
    names = [group.name for group in ImageClassifier(network).groups]
    assert names[0] == "head"
    assert len(set(names)) == len(names)


def test_the_head_is_the_classifier_alone(network: nn.Module) -> None:
    cfg: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    modules = cfg["classifier"]
    modules = (modules,) if isinstance(modules, str) else modules
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert set(ImageClassifier(network).groups[0].parameter_names) == expected


def test_no_group_is_cut_off_from_its_matrices(network: nn.Module) -> None:
    groups = ImageClassifier(network).groups
    assert len(groups) >= 3
    for group in groups[1:]:
        assert any(network.get_parameter(name).ndim >= 2 for name in group.parameter_names), (
            group.name
        )


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.conv_norm], ids=lambda f: str(f.name), indirect=True
)
def test_batch_norm_stays_with_its_convolution(network: nn.Module) -> None:
    groups = ImageClassifier(network).groups
    group_of = {name: group.name for group in groups for name in group.parameter_names}
    convolution, pairs = "", 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            convolution = name
        elif isinstance(module, nn.BatchNorm2d):
            assert group_of[f"{name}.weight"] == group_of[f"{convolution}.weight"], name
            pairs += 1
    assert pairs


def test_the_head_starts_at_zero(network: nn.Module, images: Tensor) -> None:
    network.eval()
    assert network(images).shape == (4, 3)
    assert not network(images).any()
    assert _features(network, images).any()


@pytest.mark.parametrize("thawed", ["head", "two", "all"])
def test_a_step_changes_exactly_what_trains(
    network: nn.Module, images: Tensor, thawed: str
) -> None:
    model = ImageClassifier(copy.deepcopy(network), batch_norm="train")
    randomise(model.network)
    model.set_depth({"head": 1, "two": 2, "all": len(model.groups)}[thawed])
    model.train()
    trained = {name for group in model.groups[: model.depth] for name in group.parameter_names}
    before = snapshot(model.network)

    torch.manual_seed(0)  # for dropout
    # a large step, so that a small gradient is not lost in rounding
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4, momentum=0.9)
    F.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()  # type: ignore[no-untyped-call]
    optimizer.step()

    moved = changed(before, model.network)
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


def test_frozen_features_are_the_same_in_train_and_eval_mode(
    network: nn.Module, images: Tensor
) -> None:
    model = ImageClassifier(copy.deepcopy(network), batch_norm="train")
    randomise(model.network)
    noisy = False
    numbers = assign_module_groups(model.network, model.groups)
    for name, module in model.network.named_modules():
        if isinstance(module, nn.Dropout):  # that of the head goes on at depth 1
            module.p = 0.5 if min(numbers[name]) > 0 else 0.0
        noisy |= isinstance(module, nn.Dropout | nn.BatchNorm2d)
    expected = _features(model.eval().network, images)
    if noisy:  # otherwise nothing could show that a layer was left in train mode
        assert not torch.equal(_features(copy.deepcopy(model).train().network, images), expected)
    model.set_depth(1)
    before = snapshot(model.network)
    assert torch.equal(_features(model.train().network, images), expected)
    assert not changed(before, model.network)
