"""Tests of independent logistic regressions, one for each label."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor

from finetune.probe.logistic import HeadFitter, LinearHead, LogisticProblem


def make_problem(num_images: int = 300) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return features (N, 6), and targets of three labels of different frequencies."""
    random = np.random.default_rng(0)
    features = random.normal(size=(num_images, 6)) * np.array([3, 2, 1, 1, 0.5, 0.1]) + 1
    scores = features @ random.normal(size=(6, 3)) + 2 * random.normal(size=(num_images, 3))
    targets = scores > np.quantile(scores, [0.5, 0.8, 0.95], axis=0).diagonal()
    return features.astype(np.float32), targets.astype(np.float32)


def fit(
    features: NDArray[np.float32],
    targets: NDArray[np.float32],
    penalty: float,
    *,
    weights: NDArray[np.float64] | None = None,
    positive_weights: Tensor | None = None,
    max_cached_values: int = 2**24,
) -> list[LinearHead]:
    ones = np.ones((1, len(features))) if weights is None else weights
    problem = LogisticProblem(features, targets, ones, 3, positive_weights=positive_weights)
    fitter = HeadFitter(problem, tolerance=1e-7, chunk_rows=64, max_cached_values=max_cached_values)
    return fitter.fit(penalty)


@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_heads_equal_one_versus_rest_of_scikit_learn(penalty: float) -> None:
    features, targets = make_problem()
    (head,) = fit(features, targets, penalty)
    mean = features.mean(axis=0)
    norm = np.sqrt(((features - mean) ** 2).sum(axis=1).mean())
    scaled = (features - mean) / norm
    reference = OneVsRestClassifier(
        LogisticRegression(C=1 / (penalty * len(features)), tol=1e-8, max_iter=10_000)
    ).fit(scaled, targets)
    logits = head.compute_logits(features).numpy()
    expected = np.stack([one.decision_function(scaled) for one in reference.estimators_], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=5e-3)


def test_heads_read_in_chunks_equal_those_in_memory() -> None:
    features, targets = make_problem()
    (one,), (other,) = (fit(features, targets, 1e-3, max_cached_values=size) for size in (2**24, 0))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-3)


def test_positive_weights_equal_weighted_images_of_scikit_learn() -> None:
    features, targets = make_problem()
    weights = torch.tensor([1.0, 4.0, 19.0])
    (head,) = fit(features, targets, 1e-2, positive_weights=weights)
    mean = features.mean(axis=0)
    norm = np.sqrt(((features - mean) ** 2).sum(axis=1).mean())
    scaled = (features - mean) / norm
    logits = head.compute_logits(features).numpy()
    for label, weight in enumerate(weights.tolist()):
        reference = LogisticRegression(
            C=1 / (1e-2 * len(features)), tol=1e-8, max_iter=10_000,
            class_weight={0: 1.0, 1: weight},
        ).fit(scaled, targets[:, label])  # fmt: skip
        expected = reference.decision_function(scaled)
        np.testing.assert_allclose(logits[:, label], expected, rtol=2e-3, atol=5e-3)


def test_heads_fitted_together_equal_those_fitted_alone() -> None:
    features, targets = make_problem()
    weights = np.stack([np.arange(300) % 2, np.arange(300) % 3 > 0]).astype(float)
    problem = LogisticProblem(features, targets, weights, 3)
    together = HeadFitter(problem, tolerance=1e-7)
    for head, own in zip(together.fit(1e-2), weights, strict=True):
        alone = HeadFitter(
            LogisticProblem(features, targets, own[None], 3), tolerance=1e-7, scaled_like=together
        )
        torch.testing.assert_close(head.weight, alone.fit(1e-2)[0].weight, rtol=1e-3, atol=1e-3)
