"""Folded extractors: same features in both precisions, and the fallback to the network itself."""

import logging
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.models.batch_norm_folding import fold_batch_norm
from finetune.probe.features.extractor import create_feature_extractor, fold_where_exact
from tests.support.networks import randomise


def create_network() -> nn.Module:
    network: nn.Module = timm.create_model("test_resnet", num_classes=3).eval()
    randomise(network)
    return network


def make_images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("depth", [1, 2])
def test_fold_where_exact_has_the_same_outputs(depth: int) -> None:
    extractor = create_feature_extractor(create_network(), depth=depth)
    folded = fold_where_exact(extractor, make_images(2))
    assert folded.folded is not None
    assert folded.output_names == extractor.output_names
    with torch.inference_mode():
        for actual, expected in zip(folded(make_images()), extractor(make_images()), strict=True):
            assert (actual - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("depth", [1, 2])
def test_fold_where_exact_in_bfloat16_is_as_close_to_full_precision(depth: int) -> None:
    extractor = create_feature_extractor(create_network(), depth=depth)
    folded = fold_where_exact(extractor, make_images(2))
    with torch.inference_mode():
        exact = extractor(make_images())
        with torch.autocast("cpu", torch.bfloat16):
            outputs = folded(make_images()), extractor(make_images())
    for expected, *both in zip(exact, *outputs, strict=True):
        folded_error, error = (float((output - expected).norm()) for output in both)
        assert folded_error < 1.5 * error


def test_fold_where_exact_under_autocast_compares_in_full_precision() -> None:
    extractor = create_feature_extractor(create_network())
    with torch.autocast("cpu", torch.bfloat16):
        assert fold_where_exact(extractor, make_images(2)).folded is not None


def test_fold_where_exact_without_batch_norm_returns_the_extractor() -> None:
    extractor = create_feature_extractor(timm.create_model("test_vit", num_classes=3).eval())
    assert fold_where_exact(extractor, None) is extractor


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fold_where_exact_with_features_not_finite_returns_the_extractor(value: float) -> None:
    network = create_network()
    with torch.no_grad():
        next(iter(network.parameters())).fill_(value)
    extractor = create_feature_extractor(network)
    assert fold_where_exact(extractor, make_images(2)) is extractor


@pytest.mark.parametrize("is_raising", [False, True])
def test_fold_where_exact_with_other_outputs_returns_the_extractor_and_logs(
    is_raising: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fold = fold_batch_norm

    def fold_wrongly(network: nn.Module, **options: Any) -> nn.Module | None:
        folded = fold(network, **options)
        assert folded is not None
        conv = next(layer for layer in folded.modules() if isinstance(layer, nn.Conv2d))
        if is_raising:
            conv.padding = (9, 9, 9)
        else:
            assert conv.bias is not None
            conv.bias.data += 1
        return folded

    monkeypatch.setattr("finetune.probe.features.extractor.fold_batch_norm", fold_wrongly)
    extractor = create_feature_extractor(create_network())
    with caplog.at_level(logging.INFO, "finetune"):
        assert fold_where_exact(extractor, make_images(2)) is extractor
    assert "without folding BatchNorm" in caplog.text
