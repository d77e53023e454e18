"""Temperature scaling, compared with a grid search and a leave-fold-out loop."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    NUM_FOLDS,
    calibrate,
    fit_temperature,
)
from finetune.evaluation.grouped_folds import assign_folds, encode_groups


def draw_logits(
    num_images: int, num_classes: int, *, overconfidence: float, scale: float = 3.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return logits that are ``overconfidence`` times the true log odds, and the drawn classes."""
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_images, num_classes, generator=random)
    target = torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]
    return overconfidence * logits, target


def compute_losses(
    logits: Tensor, target: Tensor, temperatures: NDArray[np.float64]
) -> list[float]:
    """Return the mean loss with smoothed targets at each temperature, in a plain loop."""
    smoothing = 1 / (len(target) + 2)
    losses = []
    for temperature in temperatures:
        total = 0.0
        for row, label in zip(logits.double().numpy() / temperature, target.tolist(), strict=True):
            log_probabilities = row - row.max() - math.log(np.exp(row - row.max()).sum())
            probabilities = np.full(len(row), smoothing / (len(row) - 1))
            probabilities[label] = 1 - smoothing
            total -= float(probabilities @ log_probabilities)
        losses.append(total / len(target))
    return losses


@pytest.mark.parametrize(
    ("num_images", "num_classes", "overconfidence"),
    [(60, 2, 0.3), (60, 5, 1.0), (40, 3, 6.0), (7, 4, 2.0)],
)
def test_fit_temperature_minimises_the_loss_on_a_grid(
    num_images: int, num_classes: int, overconfidence: float
) -> None:
    logits, target = draw_logits(num_images, num_classes, overconfidence=overconfidence)
    temperature = fit_temperature(logits, target)
    assert MIN_TEMPERATURE < temperature < MAX_TEMPERATURE
    grid = np.exp(np.linspace(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE), 400))
    nearby = temperature * np.array([0.999, 1.0, 1.001])
    nearby_losses = compute_losses(logits, target, nearby)
    assert nearby_losses[1] <= min(*compute_losses(logits, target, grid), *nearby_losses)


@pytest.mark.parametrize("overconfidence", [0.25, 1.0, 4.0])
def test_fit_temperature_recovers_the_factor_of_many_images(overconfidence: float) -> None:
    logits, target = draw_logits(20_000, 4, overconfidence=overconfidence)
    assert fit_temperature(logits, target) == pytest.approx(overconfidence, rel=0.03)


def test_fit_temperature_all_images_correct_uses_smoothed_targets() -> None:
    logits = torch.tensor([[2.0, 0.0]] * 8)
    target = torch.zeros(8, dtype=torch.int64)
    # 1 / 10 for the other class: softmax(2 / T) = 0.9
    assert fit_temperature(logits, target) == pytest.approx(2 / math.log(9))


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([[3.0, 0.0]] * 4, MAX_TEMPERATURE),  # always wrong
        ([[0.0, 0.001]] * 4, MIN_TEMPERATURE),  # always right with low confidence
        ([[2.0, 2.0]] * 4, 1.0),
        ([[1e4, 0.0], [0.0, 1e4], [0.0, 1e4], [0.0, 1e4]], MAX_TEMPERATURE),
        ([[math.nan, 0.0]] * 4, 1.0),
        ([[math.inf, 0.0]] * 4, 1.0),
    ],
)
def test_fit_temperature_without_minimum_stays_within_bounds(
    logits: list[list[float]], expected: float
) -> None:
    target = torch.ones(4, dtype=torch.int64)
    assert fit_temperature(torch.tensor(logits), target) == pytest.approx(expected)


def test_calibrate_metrics_of_a_fold_use_the_other_folds() -> None:
    logits, target = draw_logits(53, 3, overconfidence=3.0)
    calibration = calibrate(logits, target)
    assert calibration is not None
    assert (calibration.num_images, calibration.num_folds) == (53, NUM_FOLDS)
    total = 0.0
    folds = assign_folds(target.numpy(), NUM_FOLDS)
    for image in range(53):
        others = np.flatnonzero(folds != folds[image])
        temperature = fit_temperature(logits[others], target[others])
        total -= float((logits[image] / temperature).double().log_softmax(0)[target[image]])
    assert calibration.after.loss == pytest.approx(total / 53, rel=1e-6)
    assert calibration.before.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits.double(), target))
    )
    assert (
        calibration.temperature == calibration.fitted_temperature == fit_temperature(logits, target)
    )
    assert calibration.after.loss < calibration.before.loss
    assert calibration.after.calibration_error < calibration.before.calibration_error


def test_calibrate_keeps_temperature_only_if_cross_validated_loss_decreases() -> None:
    is_kept = []
    for seed in range(12):
        calibration = calibrate(*draw_logits(20, 3, overconfidence=1.5, scale=1.0, seed=seed))
        assert calibration is not None
        assert calibration.fitted_temperature != 1
        is_kept.append(calibration.after.loss < calibration.before.loss)
        assert calibration.temperature == (calibration.fitted_temperature if is_kept[-1] else 1)
    assert 0 < sum(is_kept) < len(is_kept), "the seeds must cover both cases"


def test_calibrate_images_sorted_by_class_are_spread_over_folds() -> None:
    logits, target = draw_logits(100, 2, overconfidence=3.0)
    order = target.argsort()
    calibration = calibrate(logits[order], target[order])
    assert calibration is not None
    # with one class per fold, the temperature of the others would be for another class prior
    assert calibration.after.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits / calibration.fitted_temperature, target)),
        abs=0.02,
    )


def test_calibrate_keeps_groups_in_one_fold() -> None:
    """Copies of an image in the other folds would make any temperature look right."""
    logits, target = draw_logits(12, 3, overconfidence=4.0, seed=1)
    groups = encode_groups([str(image) for image in range(12)] * 5)
    single = calibrate(logits, target)
    copied = calibrate(logits.repeat(5, 1), target.repeat(5))
    grouped = calibrate(logits.repeat(5, 1), target.repeat(5), groups=groups)
    assert single is not None and copied is not None and grouped is not None  # noqa: PT018
    assert (grouped.num_images, grouped.num_folds) == (60, NUM_FOLDS)
    assert copied.after.loss < grouped.after.loss
    assert grouped.after.loss == pytest.approx(single.after.loss, rel=0.2)


def test_calibrate_single_group_is_divided() -> None:
    logits, target = draw_logits(20, 2, overconfidence=2.0)
    assert calibrate(logits, target, groups=np.zeros(20, np.int64)) == calibrate(logits, target)


@pytest.mark.parametrize(("num_images", "num_folds"), [(2, 2), (4, 4), (5, 5), (6, 5)])
def test_calibrate_few_images_use_fewer_folds(num_images: int, num_folds: int) -> None:
    calibration = calibrate(*draw_logits(num_images, 2, overconfidence=1.0))
    assert calibration is not None
    assert calibration.num_folds == num_folds
    assert MIN_TEMPERATURE <= calibration.fitted_temperature <= MAX_TEMPERATURE + 1e-6


def test_calibrate_one_image_or_one_class_is_none() -> None:
    assert calibrate(torch.randn(1, 3), torch.tensor([0])) is None
    assert calibrate(torch.randn(5, 1), torch.zeros(5, dtype=torch.int64)) is None
