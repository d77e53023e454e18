"""GoogLeNet and AlexNet as timm models, against torchvision's own."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from finetune.models import torchvision_models
from finetune.models.classifier import normalise
from tests.support.networks import randomise

torchvision_models.register()

WEIGHTS = {
    "googlenet": torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1,
    "alexnet": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
}
CLASSIFIER_WIDTH = {"googlenet": 1024, "alexnet": 4096}


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Return a smooth image, uint8, shape (1, 224, 224, 3)."""
    noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(5))
    image: Image.Image = tv.to_pil_image(noise).resize((224, 224), Image.Resampling.BICUBIC)
    pixels: Tensor = (tv.to_tensor(image) * 255).byte().permute(1, 2, 0)[None].contiguous()
    return pixels


def _make_reference(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "alexnet":
        network: nn.Module = torchvision.models.alexnet(num_classes=20)
    else:
        network = torchvision.models.googlenet(
            num_classes=20, transform_input=True, aux_logits=True, init_weights=True
        )
    randomise(network)
    # statistics of real activations, without which the logits hardly depend on the image
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 128, 128))
    return network.eval()


@pytest.fixture(scope="module", params=["googlenet", "alexnet"])
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def reference(name: str) -> nn.Module:
    return _make_reference(name)


@pytest.fixture(scope="module")
def ours(name: str, reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """Return our network with torchvision's weights, including GoogLeNet's auxiliary heads."""
    file: Path = tmp_path_factory.mktemp(name) / "weights.pth"
    torch.save(reference.state_dict(), file)
    overlay = {"file": str(file), "num_classes": 20}
    network = timm.create_model(
        name, pretrained=True, num_classes=20, pretrained_cfg_overlay=overlay
    )
    file.unlink()  # a large file, and pytest keeps its folders
    loaded: nn.Module = network.eval()
    return loaded


def _make_input(network: nn.Module, pixels: Tensor) -> Tensor:
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    return normalise(pixels, mean=config["mean"], std=config["std"])


def test_logits_match_torchvision(
    name: str, reference: nn.Module, ours: nn.Module, pixels: Tensor
) -> None:
    imagenet_input = tv.normalize(
        pixels.permute(0, 3, 1, 2).float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        expected = reference(imagenet_input)
        logits = ours(_make_input(ours, pixels))
        raw = ours(imagenet_input)
        shifted = reference(imagenet_input + 0.1)
    tolerance = 1e-3 * float((shifted - expected).abs().max())
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
    # GoogLeNet's preprocessing is not the usual one of ImageNet: its config matters
    assert torch.equal(raw, logits) is (name == "alexnet")


def test_auxiliary_heads_of_the_file_are_dropped(
    name: str, reference: nn.Module, ours: nn.Module
) -> None:
    theirs = set(reference.state_dict())
    extra = {key for key in theirs if key.startswith(("aux1.", "aux2."))}
    assert bool(extra) is (name == "googlenet")
    assert set(ours.state_dict()) == theirs - extra


def test_model_implements_the_interface_of_timm(name: str, ours: nn.Module, pixels: Tensor) -> None:
    images = _make_input(ours, pixels)
    with torch.no_grad():
        features = ours.forward_features(images)  # type: ignore[operator]
        pooled = ours.forward_head(features, pre_logits=True)  # type: ignore[operator]
        assert features.shape == (1, ours.num_features, *features.shape[2:])
        assert pooled.shape == (1, CLASSIFIER_WIDTH[name])
        assert ours.head_hidden_size == CLASSIFIER_WIDTH[name]
        classifier = ours.get_classifier()  # type: ignore[operator]
        assert isinstance(classifier, nn.Linear)
        assert torch.equal(classifier(pooled), ours(images))


def test_reset_classifier_replaces_the_last_layer(name: str, pixels: Tensor) -> None:
    network: Any = timm.create_model(name, num_classes=3).eval()
    images = _make_input(network, pixels)
    with torch.no_grad():
        before = network.forward_head(network.forward_features(images), pre_logits=True)
        network.reset_classifier(5)
        assert network.num_classes == 5
        assert network(images).shape == (1, 5)
        network.reset_classifier(0)
        assert network.num_classes == 0
        assert torch.equal(network(images), before)


def test_pretrained_cfg_matches_torchvision_weights(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    assert cfg.url == WEIGHTS[name].url
    assert cfg.tag == "tv_in1k"
    assert cfg.num_classes == len(WEIGHTS[name].meta["categories"])
    preset = WEIGHTS[name].transforms()
    assert cfg.input_size == (3, *preset.crop_size * 2)
    assert cfg.crop_pct == preset.crop_size[0] / preset.resize_size[0]
    assert cfg.interpolation == preset.interpolation.value
    assert timm.is_model_pretrained(name)


def test_register_twice_does_not_warn() -> None:
    torchvision_models.register()  # warnings are errors in tests
    assert {"googlenet", "alexnet"} <= set(timm.list_models())


def test_drop_rate_sets_all_dropout_layers(name: str) -> None:
    network = timm.create_model(name, num_classes=3, drop_rate=0.35)
    drops = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert set(drops) == {0.35}


def test_in_chans_replaces_the_inputs_of_the_first_convolution(name: str) -> None:
    network = timm.create_model(name, num_classes=3, in_chans=4).eval()
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 4
    assert network(torch.zeros(1, 4, 224, 224)).shape == (1, 3)


def test_set_grad_checkpointing_raises_value_error(name: str, ours: nn.Module) -> None:
    ours.set_grad_checkpointing(False)  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"{name} has no activation checkpointing"):
        ours.set_grad_checkpointing(True)  # type: ignore[operator]
