"""Tests of ``finetune.saliency.saliency_maps`` and ``deletion``."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torchcam.methods import GradCAM
from torchcam.metrics import DeletionInsertionMetric

from finetune.saliency.deletion import (
    NUM_RANDOM_MAPS,
    compute_deletion_scores,
    draw_random_maps,
    resize_maps,
)
from finetune.saliency.saliency_maps import SaliencyMaps, compute_saliency
from tests.support.networks import create_small_swin, randomise

SIDE = 24


class BrightnessNetwork(nn.Module):
    """Network whose first class is that of bright images.

    Args:
        is_honest: Whether the prediction depends on its features. Otherwise nearly all of it comes
            past them, and they show the image upside down.
    """

    def __init__(self, *, is_honest: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 27)
        self.pool = nn.AvgPool2d(3)
        self.is_honest = is_honest

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 2)."""
        features = self.pool(self.conv(images if self.is_honest else images.flip((2, 3))))
        score = features.mean((1, 2, 3))
        if not self.is_honest:
            score = images.mean((1, 2, 3)) + 1e-3 * score
        return torch.stack([20 * score - 1, torch.zeros_like(score)], dim=1)


def _draw_images(count: int) -> Tensor:
    """Return noise with a bright square in the upper left quarter."""
    images = 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    images[:, :, 2:10, 2:10] += 2
    return images


def _compute(network: nn.Module, images: Tensor, **options: object) -> SaliencyMaps:
    batches = [images[first : first + 2] for first in range(0, len(images), 2)]
    return compute_saliency(network, batches, num_images=len(images), **options)  # type: ignore[arg-type]


def test_map_of_what_the_network_reads_is_trusted() -> None:
    maps = _compute(BrightnessNetwork(is_honest=True), _draw_images(5))

    assert (maps.layer, maps.reason, maps.num_trusted) == ("pool", "", 5)
    for result in maps.results:
        assert result is not None
        assert result.target == 0
        assert result.map.shape == (SIDE, SIDE)
        assert result.map.min() >= 0
        assert result.map.max() <= 1
        inside = result.map[: SIDE // 2, : SIDE // 2].mean()
        assert inside > 5 * result.map[SIDE // 2 :, SIDE // 2 :].mean()
        assert result.deletion < min(result.random_deletions)
        assert len(result.random_deletions) == NUM_RANDOM_MAPS
    assert "5 of 5 maps beat all of 7 random maps (0.6 would by chance)" in maps.describe()


def test_map_of_something_else_is_not_trusted() -> None:
    maps = _compute(BrightnessNetwork(is_honest=False), _draw_images(5))

    assert maps.num_tested == 5
    assert maps.num_trusted == 0
    assert maps.reason == (
        "Maps of this model beat random ones no more often than by chance and would mislead, so "
        "none is shown."
    )
    assert maps.describe().endswith(maps.reason)


def test_single_map_is_judged_by_itself() -> None:
    assert _compute(BrightnessNetwork(is_honest=True), _draw_images(1)).num_trusted == 1
    wrong = _compute(BrightnessNetwork(is_honest=False), _draw_images(1))
    assert wrong.num_trusted == 0
    assert wrong.reason == (
        "Saliency maps of this photo are no better than random ones, so none is shown."
    )


def test_maps_are_the_same_for_the_same_seed() -> None:
    images = _draw_images(3)
    one, other = (_compute(BrightnessNetwork(is_honest=True), images, seed=5) for _ in range(2))

    for first, second in zip(one.results, other.results, strict=True):
        assert first is not None
        assert second is not None
        assert np.array_equal(first.map, second.map)
        assert first.random_deletions == second.random_deletions


def test_budget_ends_before_the_first_image() -> None:
    maps = _compute(BrightnessNetwork(is_honest=True), _draw_images(3), budget_seconds=0)

    assert maps.results == (None, None, None)


def test_network_without_positions_has_a_reason() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    maps = _compute(network, _draw_images(2))

    assert maps.results == (None, None)
    assert "Sequential has no layer with positions" in maps.describe()


def test_maps_of_given_labels_of_a_transformer() -> None:
    network = create_small_swin()
    randomise(network)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = _compute(network, images, targets=[2, 1], is_multi_label=True)

    assert [result.target for result in maps.results if result is not None] == [2, 1]
    with torch.no_grad():
        expected = network.eval()(images).sigmoid()[[0, 1], [2, 1]]
    found = [result.probability for result in maps.results if result is not None]
    assert found == pytest.approx(expected.tolist(), rel=1e-4)


def test_deletion_score_equals_that_of_torchcam() -> None:
    network = timm.create_model("test_resnet", num_classes=3).eval()
    randomise(network)
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with GradCAM(network, "layer3") as extractor:
        metric = DeletionInsertionMetric(extractor, partial(torch.softmax, dim=-1), steps=6)
        metric.update(image, 1)
        expected = metric.summary()["deletion_auc"]
        (map_hw,) = extractor([1], network(image).softmax(dim=1))
    maps = resize_maps(map_hw, (96, 96))
    (score,) = compute_deletion_scores(network, image[0], maps, target=1, is_multi_label=False)

    assert score == pytest.approx(expected, rel=1e-5)


def test_random_maps_are_as_smooth_and_unrelated() -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    smooth = torch.exp(-((x - 5) ** 2 + (y - 9) ** 2) / 12)
    random = draw_random_maps(smooth, num_maps=5, seed=3)

    amplitudes = torch.fft.rfft2(smooth).abs()
    for one in random:
        assert torch.allclose(torch.fft.rfft2(one).abs(), amplitudes, rtol=1e-2, atol=1e-3)
        assert abs(float(torch.corrcoef(torch.stack([one.ravel(), smooth.ravel()]))[0, 1])) < 0.8
    assert torch.equal(random, draw_random_maps(smooth, num_maps=5, seed=3))
    assert not torch.equal(random, draw_random_maps(smooth, num_maps=5, seed=4))
