"""What a box leaves of an image is its share of the loss."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.lookup import has_parameter
from finetune.losses import LOSSES
from finetune.training.mixup import Mixup

LABELS = torch.tensor([0, 1, 2, 0])


def images(height: int = 12, width: int = 20) -> Tensor:
    """Return four images, each of one value."""
    return torch.arange(1.0, 5.0).view(4, 1, 1, 1).expand(4, 3, height, width).clone()


def mixed(
    mixing: Mixup,
    step: int,
    pixels: Tensor | None = None,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mixtures of a step, their logits and their loss."""
    seen: list[Tensor] = []

    def network(given: Tensor) -> Tensor:
        seen.append(given)
        return torch.stack([given.mean(dim=(1, 2, 3)) * k for k in (0.3, -0.2, 0.1)], dim=1)

    loss = mixing.compute_loss(
        images() if pixels is None else pixels,
        LABELS,
        generator=np.random.default_rng(step),
        network=network,
        criterion=criterion,
    )
    (pixels,) = seen
    return pixels, network(pixels), loss


@pytest.mark.parametrize("step", range(8))
def test_losses_are_mixed_by_the_area_that_is_left(step: int) -> None:
    pixels, logits, loss = mixed(Mixup(cutmix_alpha=1.0), step)
    own = images()
    is_own = pixels == own
    assert torch.equal(torch.where(is_own, own, own.roll(2, 0)), pixels)
    assert (is_own == is_own[:1, :1]).all()  # one box for all images and channels
    kept = is_own[0, 0]
    rows, columns = (~kept).any(dim=1), (~kept).any(dim=0)
    assert torch.equal(~kept, rows[:, None] & columns[None, :])
    share = kept.float().mean()
    expected = share * cross_entropy(logits, LABELS)
    expected += (1 - share) * cross_entropy(logits, LABELS.roll(2))
    torch.testing.assert_close(loss, expected)


def test_the_area_that_is_left_is_drawn_evenly() -> None:
    left = np.array(
        [(mixed(Mixup(cutmix_alpha=1.0), step)[0][0, 0] == 1).float().mean() for step in range(600)]
    )
    # a box whose centre may lie anywhere loses some of its area at the border
    assert 0.55 < left.mean() < 0.75
    assert left.min() < 0.15
    assert left.max() > 0.98


def test_a_coin_takes_one_of_two_ways() -> None:
    cut = 0
    for step in range(400):
        pixels, _, _ = mixed(Mixup(mixup_alpha=0.4, cutmix_alpha=1.0), step)
        values = torch.unique(pixels[0])
        cut += set(values.tolist()) <= {1.0, 3.0}
    assert 150 < cut < 250


def test_nothing_on_is_nothing() -> None:
    assert not Mixup()
    assert Mixup(mixup_alpha=0.1)
    assert Mixup(cutmix_alpha=0.1)


@pytest.mark.parametrize("name", LOSSES)
def test_the_mixed_loss_is_that_of_the_mixed_label(name: str) -> None:
    loss = LOSSES[name]
    counts = {"class_counts_K": torch.tensor([5.0, 2.0, 1.0])}
    given = counts if has_parameter(loss, "class_counts_K") else {}
    criterion = partial(loss, **given, class_weights_K=torch.tensor([0.5, 1.0, 4.0]))
    shares = []

    def soft(logits: Tensor, labels: Tensor) -> Tensor:
        shares.append(torch.nn.functional.one_hot(labels, 3).float())
        return logits.sum() * 0

    mixed(Mixup(mixup_alpha=1.0), 3, criterion=soft)
    share = float(np.random.default_rng(3).beta(1.0, 1.0))
    _, logits, found = mixed(Mixup(mixup_alpha=1.0), 3, criterion=criterion)
    expected = criterion(logits, share * shares[0] + (1 - share) * shares[1])
    torch.testing.assert_close(found, expected)
