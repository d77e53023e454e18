"""Weights of a mean of models, against a general optimiser."""

import numpy as np
import pytest
from scipy.optimize import minimize

from finetune.evaluation.mixture_weights import compute_mixture_loss, fit_mixture_weights


@pytest.mark.parametrize("num_models", [2, 3, 5])
def test_fit_mixture_weights_equals_constrained_optimiser(num_models: int) -> None:
    random = np.random.default_rng(num_models)
    probabilities = random.beta(2, 1 + np.arange(num_models), (80, num_models))
    weights = fit_mixture_weights(probabilities)
    reference = minimize(
        lambda w: -np.log(probabilities @ w).mean(),
        np.full(num_models, 1 / num_models),
        method="SLSQP",
        bounds=[(0, 1)] * num_models,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    loss = compute_mixture_loss(probabilities, weights)
    assert loss == pytest.approx(float(reference.fun), abs=1e-6)
    equal = np.full(num_models, 1 / num_models)
    assert loss < compute_mixture_loss(probabilities, equal) - 1e-4


def test_fit_mixture_weights_of_dominated_model_is_zero() -> None:
    better = np.array([0.9, 0.8, 0.7, 0.6])
    weights = fit_mixture_weights(np.stack([better, better / 2], axis=1))
    np.testing.assert_allclose(weights, [1, 0], atol=1e-6)


def test_fit_mixture_weights_survives_impossible_classes() -> None:
    weights = fit_mixture_weights(np.array([[0.0, 0.5], [0.5, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(weights, [0.5, 0.5], atol=1e-6)


def test_fit_mixture_weights_without_images_raises_value_error() -> None:
    with pytest.raises(ValueError, match="shape"):
        fit_mixture_weights(np.empty((0, 2)))


def test_compute_mixture_loss_is_mean_log_loss() -> None:
    values = np.array([[0.5, 0.1], [0.2, 0.4]])
    expected = -(np.log(0.25 * 0.5 + 0.75 * 0.1) + np.log(0.25 * 0.2 + 0.75 * 0.4)) / 2
    assert compute_mixture_loss(values, np.array([0.25, 0.75])) == pytest.approx(expected)
