"""Thresholds of the probability for a wanted precision."""

import numpy as np
import pytest
from scipy.stats import beta

from finetune.evaluation.rejection.probability_threshold import (
    choose_probability_threshold,
    find_best_precision,
)


def test_threshold_is_the_smallest_with_the_precision() -> None:
    random = np.random.default_rng(0)
    probabilities = random.random(400).astype(np.float32)
    is_correct = random.random(400) < probabilities
    found = choose_probability_threshold(probabilities, is_correct, precision=0.9)
    assert found is not None
    reached = [t for t in probabilities if is_correct[probabilities >= t].mean() >= 0.9]
    assert found.threshold == min(reached)
    answered = probabilities >= found.threshold
    assert found.chosen.num_answered == answered.sum()
    assert found.chosen.num_correct == is_correct[answered].sum()


def test_equal_probabilities_are_answered_together() -> None:
    probabilities = np.array([0.9, 0.8, 0.8, 0.8], np.float32)
    is_correct = np.array([True, True, False, False])
    found = choose_probability_threshold(probabilities, is_correct, precision=0.9)
    assert found is not None
    assert found.threshold == np.float32(0.9)


def test_all_are_answered_where_all_together_have_the_precision() -> None:
    probabilities, is_correct = np.array([0.9, 0.5]), np.array([True, True])
    found = choose_probability_threshold(probabilities, is_correct, precision=1.0)
    assert found is not None
    assert found.threshold == 0


def test_none_where_no_threshold_has_the_precision() -> None:
    probabilities, is_correct = np.array([0.9, 0.8, 0.7]), np.array([False, True, True])
    assert choose_probability_threshold(probabilities, is_correct, precision=0.9) is None
    best = find_best_precision(probabilities, is_correct)
    assert (best.num_answered, best.num_correct) == (3, 2)


def test_lower_bound_is_that_of_clopper_and_pearson() -> None:
    probabilities = np.linspace(0.5, 1, 60)
    is_correct = np.arange(60) % 20 != 0
    found = choose_probability_threshold(probabilities, is_correct, precision=0.9)
    assert found is not None
    k, n = found.chosen.num_correct, found.chosen.num_answered
    assert found.chosen.lower_bound == pytest.approx(beta.ppf(0.05, k, n - k + 1))


def test_cross_fitted_precision_is_not_that_of_the_images_that_chose() -> None:
    """Random answers: a chosen threshold looks better than it is on the images that chose it."""
    chosen, fitted = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        probabilities, is_correct = random.random(60), random.random(60) < 0.8
        found = choose_probability_threshold(probabilities, is_correct, precision=0.9)
        if found is not None and found.cross_fitted.num_answered:
            chosen.append(found.chosen.precision)
            fitted.append(found.cross_fitted.precision)
    assert np.mean(np.array(chosen, float)) >= 0.9
    assert np.mean(np.array(fitted, float)) == pytest.approx(0.8, abs=0.05)
