"""Mixtures, their losses and the distribution of the mixing weight."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.lookup import has_parameter
from finetune.losses import LOSSES, MULTI_LABEL_LOSSES, bce
from finetune.training.mixup import Mixup

LABELS = torch.tensor([0, 1, 2, 0])


def make_images(height: int = 12, width: int = 20) -> Tensor:
    """Return four images, each of a single value."""
    return torch.arange(1.0, 5.0).view(4, 1, 1, 1).expand(4, 3, height, width).clone()


def apply_mixup(
    mixup: Mixup,
    step: int,
    pixels: Tensor | None = None,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mixtures of a step, their logits and their loss."""
    inputs: list[Tensor] = []

    def network(pixels: Tensor) -> Tensor:
        inputs.append(pixels)
        return torch.stack([pixels.mean(dim=(1, 2, 3)) * k for k in (0.3, -0.2, 0.1)], dim=1)

    loss = mixup.compute_loss(
        make_images() if pixels is None else pixels,
        LABELS,
        generator=np.random.default_rng(step),
        network=network,
        criterion=criterion,
    )
    (mixtures,) = inputs
    return mixtures, network(mixtures), loss


@pytest.mark.parametrize("step", range(8))
def test_cutmix_loss_weight_equals_kept_area(step: int) -> None:
    pixels, logits, loss = apply_mixup(Mixup(cutmix_alpha=1.0), step)
    images = make_images()
    is_own = pixels == images
    assert torch.equal(torch.where(is_own, images, images.roll(2, 0)), pixels)
    assert (is_own == is_own[:1, :1]).all()  # one box for all images and channels
    is_kept = is_own[0, 0]
    rows, columns = (~is_kept).any(dim=1), (~is_kept).any(dim=0)
    assert torch.equal(~is_kept, rows[:, None] & columns[None, :])
    lam = is_kept.float().mean()
    expected = lam * cross_entropy(logits, LABELS)
    expected += (1 - lam) * cross_entropy(logits, LABELS.roll(2))
    torch.testing.assert_close(loss, expected)


def test_cutmix_kept_area_is_spread_over_unit_interval() -> None:
    kept_areas = np.array(
        [
            (apply_mixup(Mixup(cutmix_alpha=1.0), step)[0][0, 0] == 1).float().mean()
            for step in range(600)
        ]
    )
    # a box with a centre near the border loses some of its area
    assert 0.55 < kept_areas.mean() < 0.75
    assert kept_areas.min() < 0.15
    assert kept_areas.max() > 0.98


def test_mixup_and_cutmix_chosen_equally_often() -> None:
    num_cutmix = 0
    for step in range(400):
        pixels, _, _ = apply_mixup(Mixup(mixup_alpha=0.4, cutmix_alpha=1.0), step)
        values = torch.unique(pixels[0])
        num_cutmix += set(values.tolist()) <= {1.0, 3.0}
    assert 150 < num_cutmix < 250


def test_mixup_bool_is_false_without_alphas() -> None:
    assert not Mixup()
    assert Mixup(mixup_alpha=0.1)
    assert Mixup(cutmix_alpha=0.1)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in MULTI_LABEL_LOSSES])
def test_mixup_loss_equals_loss_of_mixed_label(name: str) -> None:
    loss = LOSSES[name]
    counts = {"class_counts_K": torch.tensor([5.0, 2.0, 1.0])}
    kwargs = counts if has_parameter(loss, "class_counts_K") else {}
    criterion = partial(loss, **kwargs, class_weights_K=torch.tensor([0.5, 1.0, 4.0]))
    one_hot_labels = []

    def record_labels(logits: Tensor, labels: Tensor) -> Tensor:
        one_hot_labels.append(torch.nn.functional.one_hot(labels, 3).float())
        return logits.sum() * 0

    apply_mixup(Mixup(mixup_alpha=1.0), 3, criterion=record_labels)
    lam = float(np.random.default_rng(3).beta(1.0, 1.0))
    _, logits, loss_value = apply_mixup(Mixup(mixup_alpha=1.0), 3, criterion=criterion)
    expected = criterion(logits, lam * one_hot_labels[0] + (1 - lam) * one_hot_labels[1])
    torch.testing.assert_close(loss_value, expected)


def test_mixup_of_multi_label_images_has_the_loss_of_the_mixed_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(6, 3, 8, 8, generator=generator)
    target = (torch.rand(6, 4, generator=generator) < 0.5).float()
    weight = torch.randn(4, 3 * 8 * 8, generator=generator)
    seen: list[Tensor] = []

    def network(mixed: Tensor) -> Tensor:
        seen.append(mixed)
        return mixed.flatten(1) @ weight.T

    loss = Mixup(mixup_alpha=1.0).compute_loss(
        pixels, target, generator=np.random.default_rng(0), network=network, criterion=bce
    )
    (mixed,) = seen
    lam = float(np.random.default_rng(0).beta(1.0, 1.0))
    expected = bce(network(mixed), lam * target + (1 - lam) * target.roll(3, 0))
    torch.testing.assert_close(loss, expected)
