"""Class priors, compared with Bayes' rule on classes of known distributions."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from finetune.evaluation.priors import (
    Priors,
    adjust_priors,
    build_uniform_prior,
    compute_logit_shift,
    compute_model_prior,
    describe_class_prior,
    interpolate_priors,
    is_same_prior,
    normalize_prior,
)

COUNTS = (9000, 2000, 500)
MEANS = np.array([[0.0, 0.0], [1.5, 0.0], [0.5, 1.5]])
"""Means of normally distributed classes with unit variance, whose log odds are linear."""

Array = NDArray[np.float64]


def compute_posterior(points: Array, prior: tuple[float, ...]) -> Array:
    """Return the true class probabilities under a class prior, shape (N, K)."""
    joint = np.exp(-0.5 * ((points[:, None] - MEANS) ** 2).sum(2)) * np.array(prior)
    return np.asarray(joint / joint.sum(1, keepdims=True), np.float64)


def fit_logits(points: Array, *, weights: Array, tau: float = 0.0) -> Array:
    """Return the logits of a linear network that was fitted to imbalanced points."""
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(3), COUNTS)
    inputs = torch.tensor(MEANS[labels] + random.normal(size=(len(labels), 2)))
    target, weight = torch.tensor(labels), torch.tensor(weights)[labels]
    adjustment = tau * torch.tensor(COUNTS, dtype=torch.double).div(sum(COUNTS)).log()
    linear = torch.nn.Linear(2, 3, dtype=torch.double)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        losses = cross_entropy(linear(inputs) + adjustment, target, reduction="none")
        mean = (losses * weight).sum() / weight.sum()
        mean.backward()  # type: ignore[no-untyped-call]
        return mean

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    logits: torch.Tensor = linear(torch.tensor(points))
    return np.asarray(logits.detach().numpy(), np.float64)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float64)


@pytest.fixture(scope="module")
def points() -> Array:
    random = np.random.default_rng(5).normal(size=(2000, 2))
    return np.asarray(random * 1.5 + MEANS.mean(0), np.float64)


@pytest.mark.parametrize("target", [(1 / 3, 1 / 3, 1 / 3), (0.1, 0.2, 0.7), (0.5, 0.5, 0.0)])
@pytest.mark.parametrize(
    ("power", "tau"),
    [(0.0, 0.0), (-1.0, 0.0), (-0.5, 0.0), (0.0, 1.0), (0.0, 0.5), (-0.5, 0.5)],
    ids=["plain", "balanced", "square root", "adjusted", "half adjusted", "both"],
)
def test_compute_logit_shift_of_trained_network_gives_posterior_of_target(
    points: Array, target: tuple[float, ...], power: float, tau: float
) -> None:
    weights = np.array(COUNTS) ** power
    mass = (np.array(COUNTS) * weights).tolist()
    model = compute_model_prior(COUNTS, class_mass=mass, tau=tau)
    logits = fit_logits(points, weights=weights, tau=tau)
    expected = compute_posterior(points, target)
    adjusted = softmax(logits + np.array(compute_logit_shift(target, model)))
    # tolerances for the sampling error of 11,500 points
    assert np.abs(adjusted - expected).max() < 0.06
    assert np.abs(adjusted - expected).mean() < 0.015
    assert (adjusted.argmax(1) == expected.argmax(1)).mean() > 0.97
    unadjusted = softmax(logits)
    assert np.abs(unadjusted - compute_posterior(points, model)).mean() < 0.015


def test_compute_logit_shift_of_exact_logits_gives_exact_posterior(points: Array) -> None:
    model, target = normalize_prior(COUNTS), (0.2, 0.3, 0.5)
    logits = np.log(compute_posterior(points, model)) + points[:, :1]  # any constant per image
    adjusted = softmax(logits + np.array(compute_logit_shift(target, model)))
    np.testing.assert_allclose(adjusted, compute_posterior(points, target), atol=1e-12)


def test_compute_model_prior_is_class_mass_divided_by_power_of_train_prior() -> None:
    counts = np.array([100, 10, 1])
    assert compute_model_prior(counts.tolist()) == pytest.approx(counts / counts.sum())
    balanced = compute_model_prior(counts.tolist(), class_mass=[5.0, 5.0, 5.0])
    assert balanced == pytest.approx([1 / 3] * 3)
    assert is_same_prior(compute_model_prior(counts.tolist(), tau=1.0), build_uniform_prior(3))
    half = np.sqrt(counts) / np.sqrt(counts).sum()
    assert compute_model_prior(counts.tolist(), tau=0.5) == pytest.approx(half)
    # a class without images keeps prior 0 for any tau
    assert compute_model_prior([3, 0, 1], tau=1.0) == pytest.approx([0.5, 0.0, 0.5])


def test_compute_logit_shift_with_zero_priors() -> None:
    assert compute_logit_shift((0.0, 1.0), (0.5, 0.5)) == pytest.approx((-math.inf, math.log(2)))
    assert compute_logit_shift((0.0, 1.0), (0.0, 1.0)) == (-math.inf, 0.0)
    with pytest.raises(ValueError, match="model prior of 0"):
        compute_logit_shift((0.5, 0.5), (0.0, 1.0))


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [math.nan, 1], [math.inf, 1], []])
def test_normalize_prior_invalid_weights_raise_value_error(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        normalize_prior(weights)


def test_normalize_prior_sums_to_one_without_overflow() -> None:
    assert normalize_prior([1, 3]) == (0.25, 0.75)
    assert normalize_prior([1e308, 1e308]) == (0.5, 0.5)


@pytest.mark.parametrize("target", [None, (0.25, 0.75)])
def test_priors_json_round_trip(target: tuple[float, float] | None) -> None:
    priors = Priors((0.1, 0.9), (0.5, 0.5), target)
    assert Priors.from_json(json.loads(json.dumps(asdict(priors))), 2) == priors
    assert priors.effective == (target or (0.5, 0.5))
    assert (priors.shift is None) is (target is None)
    assert Priors.from_json(None, 2) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": [0.5, 0.6]},
        {"model": [1.5, -0.5]},
        {"train": [1.0]},
        {"target": [math.nan, 1.0]},
        {"model": [1.0, 0.0], "target": [0.5, 0.5]},
    ],
)
def test_priors_from_json_invalid_values_raise_value_error(change: dict[str, list[float]]) -> None:
    tree = {"train": [0.5, 0.5], "model": [0.5, 0.5], "target": None}
    with pytest.raises(ValueError, match=r"2 classes|model prior of 0"):
        Priors.from_json({**tree, **change}, 2)


def test_describe_class_prior_names_uniform_train_and_custom() -> None:
    train = normalize_prior(COUNTS)
    assert describe_class_prior(build_uniform_prior(3), train) == "uniform"
    assert describe_class_prior(train, train) == "training class frequencies"
    assert describe_class_prior((0.1, 0.2, 0.7), train) == "custom, 0.1 to 0.7 per class"


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 1.4])
def test_interpolate_priors_scales_the_logit_shift(strength: float) -> None:
    model, target = (0.7, 0.2, 0.1), (0.2, 0.3, 0.5)
    prior = interpolate_priors(model, target, strength=strength)
    assert sum(prior) == pytest.approx(1)
    full = np.array(compute_logit_shift(target, model))
    scaled = np.array(compute_logit_shift(prior, model))
    difference = scaled - strength * full
    assert difference == pytest.approx(np.full(3, difference[0]))


def test_interpolate_priors_keeps_excluded_classes() -> None:
    assert interpolate_priors((0.5, 0.3, 0.2), (0.5, 0.5, 0.0), strength=0.5)[2] == 0
    with pytest.raises(ValueError, match="model prior of 0"):
        interpolate_priors((1.0, 0.0), (0.5, 0.5), strength=0.5)


def test_adjust_priors_targets_the_classes_with_images() -> None:
    priors = Priors((0.9, 0.1, 0.0), (0.8, 0.1, 0.1))
    assert adjust_priors(priors, strength=1).target == (0.5, 0.5, 0)
    assert adjust_priors(priors, strength=0) == priors
    half = adjust_priors(priors, strength=0.5).target
    assert half is not None
    assert half[0] / half[1] == pytest.approx(np.sqrt(8))


def test_describe_class_prior_names_powers_of_the_training_prior() -> None:
    train = (0.9, 0.09, 0.01)
    half = interpolate_priors(train, build_uniform_prior(3), strength=0.4)
    assert describe_class_prior(half, train) == "training class frequencies to the power of 0.6"
    assert describe_class_prior((0.6, 0.3, 0.1), train).startswith("custom")
    # without images of a class, and with classes of equal size
    assert "power of 0.5" in describe_class_prior((0.75, 0.25, 0.0), (0.9, 0.1, 0.0))
    assert describe_class_prior((0.6, 0.3, 0.1), build_uniform_prior(3)).startswith("custom")
