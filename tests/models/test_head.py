"""Linear head: lookup, captured inputs, folded temperature, and the backbone digest."""

import math

import pytest
import timm
import torch
from torch import nn

from finetune.models.backbone import create_network
from finetune.models.head import (
    capture_head_inputs,
    compute_backbone_digest,
    find_linear_head,
    fold_temperature_and_shift,
    set_head,
)
from tests.support.networks import randomise

pytestmark = pytest.mark.usefixtures("few_penalties")

FAMILIES = (
    "test_resnet", "test_vit", "test_efficientnet", "test_convnext", "resnet18", "vgg11", "alexnet",
    "googlenet",
)  # fmt: skip


@pytest.fixture(params=FAMILIES)
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Return a small network of a family, in eval mode."""
    network = timm.create_model(request.param, num_classes=3)
    randomise(network)
    return network.eval()


def test_capture_head_inputs_gives_the_inputs_of_the_logits(network: nn.Module) -> None:
    head = find_linear_head(network)
    assert head is not None
    side = int(network.pretrained_cfg["input_size"][-1])  # type: ignore[index]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), capture_head_inputs(head) as inputs:
        logits = network(images)
    (features,) = inputs
    assert features.shape == (2, head.in_features)
    torch.testing.assert_close(head(features), logits)
    with torch.no_grad():
        network(images)
    assert len(inputs) == 1, "nothing is captured after the block"


def test_set_head_changes_the_logits() -> None:
    network = create_network("test_resnet", num_classes=3, weights="random").module.eval()
    head = find_linear_head(network)
    assert head is not None
    set_head(head, weight=torch.zeros_like(head.weight), bias=torch.tensor([1.0, 2.0, 3.0]))
    with torch.no_grad():
        assert network(torch.randn(1, 3, 64, 64)).tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("shift", [None, (0.5, -2.0, -math.inf)])
def test_fold_temperature_and_shift_matches_scaled_and_shifted_logits(
    shift: tuple[float, ...] | None,
) -> None:
    network = create_network("test_vit", num_classes=3, weights="random").module.eval()
    randomise(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    folded = fold_temperature_and_shift(network, temperature=0.7, shift=shift)
    assert folded is not None
    with torch.no_grad():
        expected = network(images) / 0.7 + torch.tensor(shift or [0.0] * 3)
        torch.testing.assert_close(folded(images), expected)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_find_linear_head_of_two_classifiers_returns_none() -> None:
    network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3)
    assert find_linear_head(network) is None
    assert fold_temperature_and_shift(network, temperature=2.0) is None


def test_compute_backbone_digest_depends_on_the_backbone_only() -> None:
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
    # BatchNorm statistics are part of the backbone
    buffers = dict(network.named_buffers())
    next(tensor for name, tensor in buffers.items() if name.endswith("running_mean")).add_(1e-3)
    assert compute_backbone_digest(network) != first
