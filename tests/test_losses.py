"""Losses against torch, a plain loop and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's own name

from finetune.losses import LOSSES, balanced_class_weights, cross_entropy

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)


def _batch(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(4, (size,), generator=generator)


def _plain_loop(logits: Tensor, target: Tensor, weights: list[float], smoothing: float) -> float:
    total = 0.0
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        norm = math.log(sum(math.exp(value) for value in row))
        soft = [smoothing / len(row) + (1 - smoothing) * (k == label) for k in range(len(row))]
        total -= weights[label] * sum(p * (v - norm) for p, v in zip(soft, row, strict=True))
    return total / len(target)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_weights_it_is_torchs(smoothing: float) -> None:
    logits, target = _batch()
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, target, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_it_is_a_plain_loop(smoothing: float) -> None:
    logits, target = _batch()
    loss = cross_entropy(logits, target, class_weights_K=WEIGHTS, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(_plain_loop(logits, target, WEIGHTS.tolist(), smoothing))
    assert loss.shape == ()


def test_half_batches_average_to_the_whole_with_their_gradient() -> None:
    logits, target = _batch()
    whole = logits.clone().requires_grad_()
    cross_entropy(whole, target, class_weights_K=WEIGHTS).backward()  # type: ignore[no-untyped-call]
    halves = logits.clone().requires_grad_()
    losses = [
        cross_entropy(halves[rows], target[rows], class_weights_K=WEIGHTS)
        for rows in (slice(0, 4), slice(4, 8))
    ]
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
    assert whole.grad is not None
    torch.testing.assert_close(halves.grad, whole.grad)
    # torch's own weighted mean does not: the reason that this loss exists
    theirs = [F.cross_entropy(logits[r], target[r], WEIGHTS) for r in (slice(0, 4), slice(4, 8))]
    assert not torch.isclose(torch.stack(theirs).mean(), F.cross_entropy(logits, target, WEIGHTS))


def test_weights_take_the_dtype_of_the_logits() -> None:
    logits, target = _batch()
    loss = cross_entropy(logits.bfloat16(), target, class_weights_K=WEIGHTS.float())
    assert loss.dtype == torch.bfloat16


def test_balanced_weights_are_scikit_learns() -> None:
    counts = [70, 20, 9, 1]
    labels = np.repeat(np.arange(4), counts)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    weights = balanced_class_weights(counts)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert float(weights[torch.from_numpy(labels)].mean()) == pytest.approx(1)


def test_an_empty_class_has_no_weight_and_the_mean_stays_one() -> None:
    weights = balanced_class_weights([6, 0, 2])
    assert weights[1] == 0
    assert float(weights @ torch.tensor([6.0, 0.0, 2.0])) / 8 == pytest.approx(1)
    assert 6 * weights[0] == 2 * weights[2]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_mean_over_the_batch(name: str) -> None:
    logits, target = _batch()
    halves = [LOSSES[name](logits[r], target[r]) for r in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.stack(halves).mean(), LOSSES[name](logits, target))
