"""Features before the classifier, captured in the pass that gives the logits."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.errors import ModelError
from finetune.models.mlp_head import MlpSettings, attach_mlp_head
from finetune.models.pre_logits import capture_features, find_classifiers
from finetune.models.torchvision_models import register
from tests.support.networks import randomise


def _capture(network: nn.Module, images: Tensor, *, passes: int = 1) -> tuple[Tensor, Tensor]:
    """Return the logits of the first pass and the features."""
    with torch.inference_mode(), capture_features(network.eval()) as captured:
        logits = [network(images * (1 + view)) for view in range(passes)]
        return logits[0], captured.pop()


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("test_resnet", 96),
        ("test_vit", 64),
        ("test_convnext", 64),
        ("test_efficientnet", 256),
        ("mobilenetv3_small_050", 1024),  # with a hidden layer in its head
        ("deit_tiny_distilled_patch16_224", 192),  # with two classifiers
    ],
)
def test_features_are_those_of_timm(name: str, width: int) -> None:
    network: Any = timm.create_model(name, num_classes=3)
    randomise(network)
    images = torch.randn(2, *network.pretrained_cfg["input_size"])
    logits, features = _capture(network, images)
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
        assert torch.equal(logits, network(images))
    assert features.shape == (2, width)
    assert torch.allclose(features, expected, atol=1e-6)


def test_features_of_a_torchvision_network_are_those_of_its_head() -> None:
    register()
    network: Any = timm.create_model("googlenet", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    _, features = _capture(network, images)
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
    assert torch.allclose(features, expected, atol=1e-6)


def test_features_before_hidden_layers_are_those_of_the_backbone() -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    images = torch.randn(2, 3, 64, 64)
    _, plain = _capture(network, images)
    attach_mlp_head(network, MlpSettings(hidden=(7,)))
    _, features = _capture(network, images)
    assert torch.equal(features, plain)


def test_features_of_several_views_are_their_mean() -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    images = torch.randn(2, 3, 64, 64)
    views = [_capture(network, images * (1 + view))[1] for view in range(2)]
    _, features = _capture(network, images, passes=2)
    assert torch.allclose(features, torch.stack(views).mean(0), atol=1e-6)


def test_features_of_positions_are_their_mean() -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.classifier = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)

        def get_classifier(self) -> nn.Module:
            return self.classifier

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.classifier(self.stem(x)).mean((2, 3))
            return scores

    network, images = Convolution(), torch.randn(2, 3, 8, 8)
    _, features = _capture(network, images)
    assert torch.allclose(features, network.stem(images).mean((2, 3)), atol=1e-6)


def test_networks_without_features_are_refused() -> None:
    logits_only = nn.Flatten()
    assert find_classifiers(logits_only) == ()
    with (
        pytest.raises(ModelError, match="does not name its classifier"),
        capture_features(logits_only),
    ):
        pass
    network: Any = timm.create_model("test_resnet", num_classes=3).eval()
    with capture_features(network) as captured, pytest.raises(ModelError, match="does not call"):
        captured.pop()
    assert not network.get_classifier()._forward_pre_hooks
