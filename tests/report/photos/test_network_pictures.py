"""Tests of the pictures of a network: filters, feature maps, saliency, and what replaces them."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.model_card import ModelCard
from finetune.commands.report.photos.filters import draw_filters, find_first_convolution
from finetune.commands.report.photos.run_network import RunNetwork
from finetune.commands.report.photos.stage_maps import NUM_CHANNELS, draw_stage_maps
from finetune.types import PreprocessSpec


def decode(uri: str) -> np.ndarray:
    """Return the pixels of a data URI."""
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))))


def build_network(name: str, side: int = 64) -> RunNetwork:
    """Return a small network of timm without weights."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"img_size": side} if "vit" in name else {}
    network = timm.create_model(name, num_classes=3, **options).eval()
    spec = PreprocessSpec((3, side, side), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "center")
    card = ModelCard(name, options, ("a", "b", "c"), spec, {})
    bundle = ModelBundle(network, card, Path("bundle"))
    return RunNetwork(bundle, network, card, torch.device("cpu"))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_feature_maps_are_of_every_stage_and_vary(name: str) -> None:
    network = build_network(name)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    stages = draw_stage_maps(network, pixels)
    assert len(stages) >= 3
    for stage in stages:
        assert 1 <= len(stage.channels) <= NUM_CHANNELS
        assert min(stage.size) >= 2
        for _, uri in stage.channels:
            assert decode(uri).min() == 0
            assert decode(uri).max() == 255
    assert not any(module._forward_hooks for module in network.network.modules())


def test_feature_maps_are_those_of_the_stage() -> None:
    network = build_network("test_resnet")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    stage = next(one for one in draw_stage_maps(network, pixels) if one.name == "layer2")
    kept = []
    handle = network.network.layer2.register_forward_hook(lambda *args: kept.append(args[2]))  # type: ignore[union-attr]
    with torch.inference_mode():
        network.network(network.prepare([pixels]))
    handle.remove()
    maps = kept[0][0].numpy()
    assert (stage.num_channels, stage.size) == (len(maps), maps.shape[1:])
    channel, uri = stage.channels[0]
    assert channel == maps.var(axis=(1, 2)).argmax()
    expected = (maps[channel] - maps[channel].min()) / np.ptp(maps[channel]) * 255
    np.testing.assert_allclose(decode(uri), expected, atol=1)


def test_filters_are_colors_with_grey_as_zero() -> None:
    layer = nn.Conv2d(3, 2, 3)
    weight = torch.zeros(2, 3, 3, 3)
    weight[0, 0] = 0.5
    weight[1, 1, 1, 1] = -1
    layer.weight.data = weight
    sheet = draw_filters(nn.Sequential(layer, nn.ReLU()), 3)
    assert not isinstance(sheet, str)
    picture = decode(sheet.picture)
    assert picture.shape == (3, 7, 4)
    assert picture[0, 0].tolist() == [255, 128, 128, 255]  # the filter of the largest norm
    assert picture[1, 5].tolist() == [128, 0, 128, 255]
    assert picture[0, 3, 3] == 0  # a gap


def test_filters_of_other_channels_are_grey_and_a_network_may_have_none() -> None:
    sheet = draw_filters(nn.Sequential(nn.Conv2d(5, 4, 3)), 5)
    assert not isinstance(sheet, str)
    assert (sheet.is_color, sheet.num_channels) == (False, 5)
    picture = decode(sheet.picture)
    assert (picture[..., 0] == picture[..., 2]).all()
    assert "no convolution" in str(draw_filters(nn.Sequential(nn.Linear(4, 4)), 3))
    assert "too few" in str(draw_filters(nn.Sequential(nn.Conv2d(3, 4, 1)), 3))
    assert find_first_convolution(nn.Sequential(nn.Conv2d(8, 4, 3)), 3) is None


def test_features_are_the_input_of_the_classifier() -> None:
    network = build_network("test_resnet")
    pixels = [np.full((64, 64, 3), value, np.uint8) for value in (0, 200)]
    with torch.inference_mode(), network.capture_features() as found:
        logits = network.network(network.prepare(pixels))
        expected = network.network.get_classifier()(found[0])  # type: ignore[operator]
    torch.testing.assert_close(logits, expected)
