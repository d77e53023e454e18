"""Tests of the validation metrics: the calibrated loss does not depend on the confidence."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from finetune.evaluation.metrics import evaluate_probabilities
from finetune.evaluation.validation import compute_calibrated_loss, compute_validation_metrics


def draw_logits(num_images: int = 300, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(num_classes, (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(num_images), target] += 1.0
    return logits, target


def test_calibrated_loss_is_the_least_log_loss_over_temperatures() -> None:
    logits, target = draw_logits()
    losses = [
        log_loss(target, (logits / temperature).softmax(dim=1).numpy())
        for temperature in np.geomspace(0.2, 5, 200)
    ]
    found = compute_calibrated_loss((logits * 3).softmax(dim=1), target)
    # the temperature is fitted to slightly smoothed targets, so that it exists for all
    assert found == pytest.approx(min(losses), rel=1e-3)
    assert log_loss(target, (logits * 3).softmax(dim=1).numpy()) > 1.2 * found


@pytest.mark.parametrize("scale", [0.2, 5.0])
def test_calibrated_loss_ignores_the_confidence(scale: float) -> None:
    logits, target = draw_logits()
    expected = compute_calibrated_loss(logits.softmax(dim=1), target)
    found = compute_calibrated_loss((logits * scale).softmax(dim=1), target)
    assert found == pytest.approx(expected, rel=1e-6)


def test_calibrated_loss_is_finite_for_certain_and_wrong_predictions() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(compute_calibrated_loss(probabilities, torch.tensor([1, 0, 1])))
    assert compute_calibrated_loss(torch.ones(2, 1), torch.tensor([0, 0])) == 0


def test_validation_metrics_contain_those_of_an_evaluation() -> None:
    logits, target = draw_logits()
    probabilities, classes = logits.softmax(dim=1), ("a", "b", "c", "d")
    metrics = compute_validation_metrics(probabilities, target, classes=classes)
    expected = dict(evaluate_probabilities(probabilities, target, classes=classes).metrics)
    assert metrics == expected | {"calibrated_loss": compute_calibrated_loss(probabilities, target)}


def test_calibrated_loss_ignores_the_adjustment_to_another_prior() -> None:
    logits, target = draw_logits()
    shift = torch.tensor([2.0, 0.0, -1.0, 0.5])
    shifted = (logits + shift).softmax(dim=1)
    classes = ("a", "b", "c", "d")
    metrics = compute_validation_metrics(shifted, target, classes=classes, logit_shift=shift)
    expected = compute_calibrated_loss(logits.softmax(dim=1), target)
    assert metrics["calibrated_loss"] == pytest.approx(expected, rel=1e-6)
    assert (
        metrics["loss"] == evaluate_probabilities(shifted, target, classes=classes).metrics["loss"]
    )
