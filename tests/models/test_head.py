"""The classifier of any network is found, and what it is given is what its logits are made of."""

import math

import pytest
import timm
import torch
from torch import nn

import finetune
from finetune.models.backbone import create_network
from finetune.models.head import (
    capture_head_inputs,
    compute_backbone_digest,
    find_linear_head,
    fold_temperature_and_shift,
    set_head,
)
from tests.support.networks import randomise

FAMILIES = (
    "test_resnet", "test_vit", "test_efficientnet", "test_convnext", "resnet18", "vgg11", "alexnet",
    "googlenet",
)  # fmt: skip


@pytest.fixture(params=FAMILIES)
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Return a small network of a family, in eval mode."""
    made = timm.create_model(request.param, num_classes=3)
    randomise(made)
    return made.eval()


def test_logits_are_what_the_head_makes_of_what_it_is_given(network: nn.Module) -> None:
    head = find_linear_head(network)
    assert head is not None
    side = int(network.pretrained_cfg["input_size"][-1])  # type: ignore[index]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), capture_head_inputs(head) as seen:
        logits = network(images)
    (features,) = seen
    assert features.shape == (2, head.in_features)
    torch.testing.assert_close(head(features), logits)
    with torch.no_grad():
        network(images)
    assert len(seen) == 1, "nothing is collected behind the block"


def test_a_head_that_was_set_is_the_one_that_answers() -> None:
    network = create_network("test_resnet", num_classes=3, weights="random").module.eval()
    head = find_linear_head(network)
    assert head is not None
    set_head(head, weight=torch.zeros_like(head.weight), bias=torch.tensor([1.0, 2.0, 3.0]))
    with torch.no_grad():
        assert network(torch.randn(1, 3, 64, 64)).tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("shift", [None, (0.5, -2.0, -math.inf)])
def test_what_the_head_holds_is_done_to_the_logits(shift: tuple[float, ...] | None) -> None:
    network = create_network("test_vit", num_classes=3, weights="random").module.eval()
    randomise(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    changed = fold_temperature_and_shift(network, temperature=0.7, shift=shift)
    assert changed is not None
    with torch.no_grad():
        expected = network(images) / 0.7 + torch.tensor(shift or [0.0] * 3)
        torch.testing.assert_close(changed(images), expected)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_network_with_two_classifiers_has_no_linear_head() -> None:
    network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3)
    assert find_linear_head(network) is None
    assert fold_temperature_and_shift(network, temperature=2.0) is None


def test_the_fingerprint_is_that_of_the_backbone_alone() -> None:
    network = create_network("test_resnet", num_classes=3, weights="random", seed=1).module
    same = create_network("test_resnet", num_classes=3, weights="random", seed=1).module
    first = compute_backbone_digest(network)
    assert compute_backbone_digest(same) == first
    head = find_linear_head(same)
    assert head is not None
    nn.init.ones_(head.weight)
    assert compute_backbone_digest(same) == first
    other = create_network("test_resnet", num_classes=3, weights="random", seed=2).module
    assert compute_backbone_digest(other) != first
    # statistics of BatchNorm are a part of what it says
    buffers = dict(network.named_buffers())
    next(tensor for name, tensor in buffers.items() if name.endswith("running_mean")).add_(1e-3)
    assert compute_backbone_digest(network) != first
