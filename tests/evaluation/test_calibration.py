"""One temperature for all logits, and what it is worth on images that it did not see."""

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


def said_and_true(
    num_images: int, num_classes: int, *, sureness: float, scale: float = 3.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return logits that are ``sureness`` times as large as they should be, and what came true."""
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_images, num_classes, generator=random)
    target = torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]
    return sureness * logits, target


def losses(logits: Tensor, target: Tensor, temperatures: NDArray[np.float64]) -> list[float]:
    """Return the mean loss at each temperature, in a loop, with targets that leave room."""
    room = 1 / (len(target) + 2)
    found = []
    for temperature in temperatures:
        total = 0.0
        for row, label in zip(logits.double().numpy() / temperature, target.tolist(), strict=True):
            log_probabilities = row - row.max() - math.log(np.exp(row - row.max()).sum())
            wanted = np.full(len(row), room / (len(row) - 1))
            wanted[label] = 1 - room
            total -= float(wanted @ log_probabilities)
        found.append(total / len(target))
    return found


@pytest.mark.parametrize(
    ("num_images", "num_classes", "sureness"),
    [(60, 2, 0.3), (60, 5, 1.0), (40, 3, 6.0), (7, 4, 2.0)],
)
def test_no_temperature_nearby_has_a_lower_loss(
    num_images: int, num_classes: int, sureness: float
) -> None:
    logits, target = said_and_true(num_images, num_classes, sureness=sureness)
    found = fit_temperature(logits, target)
    assert MIN_TEMPERATURE < found < MAX_TEMPERATURE
    grid = np.exp(np.linspace(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE), 400))
    around = found * np.array([0.999, 1.0, 1.001])
    assert losses(logits, target, around)[1] <= min(
        *losses(logits, target, grid), *losses(logits, target, around)
    )


@pytest.mark.parametrize("sureness", [0.25, 1.0, 4.0])
def test_many_images_give_back_what_logits_were_multiplied_by(sureness: float) -> None:
    logits, target = said_and_true(20_000, 4, sureness=sureness)
    assert fit_temperature(logits, target) == pytest.approx(sureness, rel=0.03)


def test_images_that_are_all_right_leave_room_for_one_that_would_not_have_been() -> None:
    logits = torch.tensor([[2.0, 0.0]] * 8)
    target = torch.zeros(8, dtype=torch.int64)
    # a share of 1 / 10 for the other class: softmax(2 / T) = 0.9
    assert fit_temperature(logits, target) == pytest.approx(2 / math.log(9))


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([[3.0, 0.0]] * 4, MAX_TEMPERATURE),  # always wrong
        ([[0.0, 0.001]] * 4, MIN_TEMPERATURE),  # always right, and hardly says so
        ([[2.0, 2.0]] * 4, 1.0),
        ([[1e4, 0.0], [0.0, 1e4], [0.0, 1e4], [0.0, 1e4]], MAX_TEMPERATURE),
        ([[math.nan, 0.0]] * 4, 1.0),
        ([[math.inf, 0.0]] * 4, 1.0),
    ],
)
def test_what_has_no_best_temperature_stays_within_bounds(
    logits: list[list[float]], expected: float
) -> None:
    target = torch.ones(4, dtype=torch.int64)
    assert fit_temperature(torch.tensor(logits), target) == pytest.approx(expected)


def test_what_is_said_of_an_image_comes_from_the_others() -> None:
    logits, target = said_and_true(53, 3, sureness=3.0)
    found = calibrate(logits, target)
    assert found is not None
    assert (found.num_images, found.num_folds) == (53, NUM_FOLDS)
    total = 0.0
    for image in range(53):
        others = [other for other in range(53) if other % NUM_FOLDS != image % NUM_FOLDS]
        temperature = fit_temperature(logits[others], target[others])
        total -= float((logits[image] / temperature).double().log_softmax(0)[target[image]])
    assert found.after.loss == pytest.approx(total / 53, rel=1e-6)
    assert found.before.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits.double(), target))
    )
    assert found.temperature == found.fitted == fit_temperature(logits, target)
    assert found.after.loss < found.before.loss
    assert found.after.calibration_error < found.before.calibration_error


def test_a_temperature_is_taken_only_where_it_helps_images_that_it_did_not_see() -> None:
    taken = []
    for seed in range(12):
        found = calibrate(*said_and_true(20, 3, sureness=1.5, scale=1.0, seed=seed))
        assert found is not None
        assert found.fitted != 1
        taken.append(found.after.loss < found.before.loss)
        assert found.temperature == (found.fitted if taken[-1] else 1)
    assert 0 < sum(taken) < len(taken), "both happen, or nothing was shown"


def test_images_in_the_order_of_their_classes_are_shared_out() -> None:
    logits, target = said_and_true(100, 2, sureness=3.0)
    order = target.argsort()
    found = calibrate(logits[order], target[order])
    assert found is not None
    # a part with one class alone would leave the others a temperature for another mixture
    assert found.after.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits / found.fitted, target)), abs=0.02
    )


@pytest.mark.parametrize(("num_images", "num_folds"), [(2, 2), (4, 4), (5, 5), (6, 5)])
def test_few_images_make_fewer_parts(num_images: int, num_folds: int) -> None:
    found = calibrate(*said_and_true(num_images, 2, sureness=1.0))
    assert found is not None
    assert found.num_folds == num_folds
    assert MIN_TEMPERATURE <= found.fitted <= MAX_TEMPERATURE + 1e-6


def test_one_image_or_one_class_has_no_temperature() -> None:
    assert calibrate(torch.randn(1, 3), torch.tensor([0])) is None
    assert calibrate(torch.randn(5, 1), torch.zeros(5, dtype=torch.int64)) is None
