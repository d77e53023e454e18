"""Tests of the losses of multi-label images."""

from typing import Any

import pytest
import torch
from timm.loss.asymmetric_loss import AsymmetricLossMultiLabel
from torch.nn.functional import binary_cross_entropy_with_logits

from finetune.losses.binary import asymmetric, bce, compute_positive_weights


def make_binary_batch(*, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and targets of 16 images."""
    generator = torch.Generator().manual_seed(num_labels)
    logits = 3 * torch.randn(16, num_labels, generator=generator)
    return logits, (torch.rand(16, num_labels, generator=generator) < 0.4).float()


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 0.5, 20.0])])
def test_bce_equals_torch(weights: torch.Tensor | None) -> None:
    logits, target = make_binary_batch(num_labels=4)
    expected = binary_cross_entropy_with_logits(logits, target, pos_weight=weights)
    torch.testing.assert_close(bce(logits, target, positive_weights_K=weights), expected)


def test_bce_smoothing_equals_a_plain_loop() -> None:
    logits, target = make_binary_batch(num_labels=3)
    total = 0.0
    for row, labels in zip(logits.sigmoid().tolist(), target.tolist(), strict=True):
        for p, label in zip(row, labels, strict=True):
            wanted = 0.9 if label else 0.1
            total -= wanted * torch.tensor(p).log().item()
            total -= (1 - wanted) * torch.tensor(1 - p).log().item()
    assert bce(logits, target, label_smoothing=0.2).item() == pytest.approx(
        total / logits.numel(), rel=1e-5
    )


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0},
        {"gamma_neg": 2.5, "gamma_pos": 0.0, "clip": 0.2},
        {"gamma_neg": 1.0, "gamma_pos": 3.0, "clip": 0.0},
    ],
)
def test_asymmetric_equals_timm_and_so_do_its_gradients(params: dict[str, Any]) -> None:
    logits, target = make_binary_batch(num_labels=5)
    own, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = asymmetric(own, target, **params)
    expected = AsymmetricLossMultiLabel(**params)(other, target) / expected_factor(target)
    torch.testing.assert_close(loss, expected)
    (grad,), (expected_grad,) = (
        torch.autograd.grad(value, logits) for value, logits in ((loss, own), (expected, other))
    )
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


def expected_factor(target: torch.Tensor) -> int:
    """Return what timm's loss, a sum over labels or over images too, is larger by."""
    uniform = AsymmetricLossMultiLabel(gamma_neg=0, gamma_pos=0, clip=0)
    mean = torch.log(torch.tensor(2.0))
    return round(float(uniform(torch.zeros_like(target), target) / mean))


def test_asymmetric_without_focus_and_clip_is_bce() -> None:
    logits, target = make_binary_batch(num_labels=3)
    torch.testing.assert_close(
        asymmetric(logits, target, gamma_neg=0, gamma_pos=0, clip=0), bce(logits, target)
    )


def test_binary_losses_are_linear_in_the_target() -> None:
    logits, first = make_binary_batch(num_labels=4)
    second = first.roll(1, 0)
    for loss in (bce, asymmetric):
        mixed = loss(logits, 0.3 * first + 0.7 * second)
        parts = 0.3 * loss(logits, first) + 0.7 * loss(logits, second)
        torch.testing.assert_close(mixed, parts)


def test_binary_losses_are_finite_for_large_logits_with_gradients_where_they_are_wrong() -> None:
    logits = torch.tensor([[-60.0, 60.0]], requires_grad=True)
    for loss in (bce, asymmetric):
        value = loss(logits, torch.tensor([[1.0, 0.0]]))
        (grad,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert grad.isfinite().all()
        assert grad[0, 0] < 0


@pytest.mark.parametrize(
    "params", [{"gamma_neg": -1.0}, {"gamma_pos": float("inf")}, {"clip": 1.0}]
)
def test_asymmetric_parameter_out_of_range(params: dict[str, float]) -> None:
    logits, target = make_binary_batch(num_labels=2)
    with pytest.raises(ValueError, match=next(iter(params))):
        asymmetric(logits, target, **params)


def test_positive_weights_balance_images_with_and_without_a_label() -> None:
    weights = compute_positive_weights([50, 20, 0, 1, 100], 100)
    assert weights.tolist() == pytest.approx([1.0, 4.0, 1.0, 99.0, 0.01])
    assert compute_positive_weights([1], 1000).tolist() == [100.0]
