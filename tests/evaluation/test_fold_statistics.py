"""Tests of the statistics over folds, against formulas and simulated cross-validations."""

import math
from statistics import fmean, stdev

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation.fold_statistics import compute_fold_statistics

VALUES = [0.91, 0.94, 0.9, 0.95, 0.92]


def test_interval_is_that_of_the_corrected_resampled_t_test() -> None:
    result = compute_fold_statistics(VALUES, test_fraction=0.25, bounds=(0, 1))
    assert result is not None
    assert result.mean == pytest.approx(fmean(VALUES))
    assert result.std == pytest.approx(stdev(VALUES))
    scale = stdev(VALUES) * math.sqrt(1 / 5 + 0.25)
    expected = stats.t.interval(0.95, df=4, loc=fmean(VALUES), scale=scale)
    assert result.interval == pytest.approx(expected)


def test_interval_ends_at_the_bounds_and_covers_the_floor() -> None:
    result = compute_fold_statistics([0.99, 1.0, 0.5], test_fraction=0.5, bounds=(0, 1))
    assert result is not None
    assert result.interval is not None
    assert result.interval[1] == 1
    floor = compute_fold_statistics(VALUES, test_fraction=0.25, floor=(0.5, 0.93))
    plain = compute_fold_statistics(VALUES, test_fraction=0.25)
    assert floor is not None
    assert plain is not None
    assert plain.interval is not None
    assert floor.interval == (0.5, plain.interval[1])


def test_equal_folds_have_no_interval_of_their_own() -> None:
    result = compute_fold_statistics([1.0, 1.0, 1.0], test_fraction=0.5)
    assert result is not None
    assert result.interval is None
    assert result.to_json()["interval"] is None
    floored = compute_fold_statistics([1.0, 1.0, 1.0], test_fraction=0.5, floor=(0.9, 1.0))
    assert floored is not None
    assert floored.interval == (0.9, 1.0)


def test_undefined_folds_are_left_out_and_kept_in_the_values() -> None:
    result = compute_fold_statistics([0.5, None, 0.7], test_fraction=0.5)
    assert result is not None
    assert result.mean == pytest.approx(0.6)
    assert result.values == (0.5, None, 0.7)
    assert compute_fold_statistics([0.5, None], test_fraction=1.0) is None


def test_interval_covers_the_accuracy_of_simulated_learners() -> None:
    """A nearest-mean classifier of two Gaussian classes, whose true accuracy is known."""
    random = np.random.default_rng(0)
    num_images, num_folds, covered = 100, 5, 0
    for _ in range(300):
        labels = np.repeat([0, 1], num_images // 2)
        points = random.normal(labels[:, None] * 1.0, 1, (num_images, 2))
        folds = random.permutation(np.arange(num_images) % num_folds)
        accuracies, truths = [], []
        for fold in range(num_folds):
            train = folds != fold
            means = [points[train & (labels == label)].mean(axis=0) for label in (0, 1)]
            direction, middle = means[1] - means[0], (means[0] + means[1]) / 2
            predicted = (points[~train] - middle) @ direction > 0
            accuracies.append(float((predicted == labels[~train]).mean()))
            norm = float(np.linalg.norm(direction))
            low, high = (float((np.full(2, c) - middle) @ direction) / norm for c in (0.0, 1.0))
            truths.append((stats.norm.cdf(-low) + stats.norm.cdf(high)) / 2)
        result = compute_fold_statistics(accuracies, test_fraction=0.25, bounds=(0, 1))
        assert result is not None
        low, high = result.interval or (result.mean, result.mean)
        covered += low <= fmean(truths) <= high
    assert covered / 300 >= 0.93
