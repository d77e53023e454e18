"""Logistic regression against scikit-learn, in one table and in chunks."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from finetune.probe.logistic import HeadFitter, LinearHead, LogisticProblem

CLASSES = 4


def make_problem(num_rows: int = 300, *, seed: int = 0, shift: float = 3.0) -> LogisticProblem:
    """Return overlapping clusters, far from the origin, with unequal sample weights."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, num_rows)
    centres = random.normal(size=(CLASSES, 8))
    features = (centres[labels] + random.normal(size=(num_rows, 8)) + shift).astype(np.float32)
    return LogisticProblem(features, labels, random.uniform(0.2, 3.0, (1, num_rows)), CLASSES)


def scale_features(problem: LogisticProblem) -> NDArray[np.float64]:
    """Return the scaled features, to which the penalty applies."""
    features = np.asarray(problem.features[:], np.float64)
    sample_weights = problem.weights[0] / problem.weights.sum()
    centred = features - sample_weights @ features
    return np.asarray(centred / np.sqrt(sample_weights @ np.square(centred).sum(axis=1)))


@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_fit_matches_scikit_learn(penalty: float) -> None:
    problem = make_problem()
    (head,) = HeadFitter(problem, tolerance=1e-7).fit(penalty)
    reference = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
    sample_weights = problem.weights[0] / problem.weights.sum()
    reference.fit(scale_features(problem), problem.labels, sample_weight=sample_weights)
    probabilities = head.compute_logits(problem.features).softmax(dim=1).numpy()
    np.testing.assert_allclose(
        probabilities, reference.predict_proba(scale_features(problem)), atol=2e-3
    )


def test_fit_several_heads_matches_separate_fits() -> None:
    problem = make_problem()
    folds = np.stack([problem.weights[0] * (np.arange(300) % 3 != fold) for fold in range(3)])
    together = HeadFitter(
        LogisticProblem(problem.features, problem.labels, folds, CLASSES), tolerance=1e-7
    ).fit(1e-2)
    for head, weights in zip(together, folds, strict=True):
        (alone,) = HeadFitter(
            LogisticProblem(problem.features, problem.labels, weights[None], CLASSES),
            tolerance=1e-7,
        ).fit(1e-2)
        # the feature scale, and with it the effective penalty, is that of all rows
        actual, expected = (
            h.compute_logits(problem.features).softmax(dim=1) for h in (head, alone)
        )
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-2)


def test_fit_in_chunks_matches_fit_in_memory() -> None:
    problem = make_problem()
    (in_memory,) = HeadFitter(problem, tolerance=1e-7).fit(1e-3)
    (in_chunks,) = HeadFitter(problem, tolerance=1e-7, chunk_rows=7, max_cached_values=0).fit(1e-3)
    torch.testing.assert_close(in_chunks.weight, in_memory.weight, rtol=0, atol=2e-3)
    torch.testing.assert_close(
        in_chunks.compute_logits(problem.features),
        in_memory.compute_logits(problem.features),
        rtol=0,
        atol=2e-2,
    )


def test_fit_in_chunks_reads_at_most_chunk_rows() -> None:
    problem = make_problem()

    class RecordingArray:
        shape = problem.features.shape
        max_rows = 0

        def __getitem__(self, rows: slice) -> NDArray[np.float32]:
            features = problem.features[rows]
            RecordingArray.max_rows = max(RecordingArray.max_rows, len(features))
            return features

    recorded = LogisticProblem(RecordingArray(), problem.labels, problem.weights, CLASSES)
    HeadFitter(recorded, chunk_rows=64, max_cached_values=0).fit(1e-3)
    assert 0 < RecordingArray.max_rows <= 64


def test_fit_ignores_rows_of_weight_0() -> None:
    problem = make_problem()
    weights = problem.weights.copy()
    weights[0, ::3] = 0
    has_weight = weights[0] > 0
    without = LogisticProblem(
        problem.features[:][has_weight], problem.labels[has_weight], weights[:, has_weight], CLASSES
    )
    (all_rows,) = HeadFitter(
        LogisticProblem(problem.features, problem.labels, weights, CLASSES), tolerance=1e-7
    ).fit(1e-3)
    (fewer_rows,) = HeadFitter(without, tolerance=1e-7).fit(1e-3)
    torch.testing.assert_close(
        all_rows.compute_logits(problem.features),
        fewer_rows.compute_logits(problem.features),
        rtol=0,
        atol=2e-2,
    )


def test_fit_warm_start_matches_direct_fit() -> None:
    problem = make_problem()
    (direct,) = HeadFitter(problem, tolerance=1e-7).fit(1e-4)
    fitter = HeadFitter(problem, tolerance=1e-7)
    for penalty in (1e-1, 1e-2, 1e-3):
        fitter.fit(penalty)
    (later,) = fitter.fit(1e-4)
    torch.testing.assert_close(
        later.compute_logits(problem.features),
        direct.compute_logits(problem.features),
        rtol=0,
        atol=5e-2,
    )


def test_fit_constant_features_predicts_class_frequencies() -> None:
    labels = np.repeat([0, 1, 2], [6, 3, 1])
    problem = LogisticProblem(np.full((10, 5), 2.5, np.float32), labels, np.ones((1, 10)), 3)
    (head,) = HeadFitter(problem).fit(1e-2)
    probabilities = head.compute_logits(problem.features).softmax(dim=1)[0]
    np.testing.assert_allclose(probabilities.numpy(), [0.6, 0.3, 0.1], atol=1e-3)


def test_compute_logits_without_rows_returns_empty() -> None:
    head = LinearHead(torch.zeros(3, 5), torch.zeros(3))
    assert head.compute_logits(np.zeros((0, 5), np.float32)).shape == (0, 3)


def make_wide_problem() -> LogisticProblem:
    """Return a problem of fewer rows than columns, in three folds."""
    random = np.random.default_rng(5)
    labels = random.integers(0, CLASSES, 40)
    features = (random.normal(size=(CLASSES, 90))[labels] + random.normal(size=(40, 90))).astype(
        np.float32
    )
    weights = random.uniform(0.2, 3.0, 40)
    folds = np.stack([weights * (np.arange(40) % 3 != fold) for fold in range(3)])
    return LogisticProblem(features, labels, folds, CLASSES)


def test_fit_with_fewer_rows_than_columns_matches_scikit_learn() -> None:
    problem = make_wide_problem()
    alone = LogisticProblem(problem.features, problem.labels, problem.weights.sum(0)[None], CLASSES)
    (head,) = HeadFitter(alone, tolerance=1e-7).fit(1e-3)
    reference = LogisticRegression(C=1e3, tol=1e-10, max_iter=10_000)
    scaled = scale_features(alone)
    reference.fit(scaled, alone.labels, sample_weight=alone.weights[0] / alone.weights.sum())
    others = np.random.default_rng(6).normal(size=(20, 90)).astype(np.float32)
    features = np.asarray(problem.features[:], np.float64)
    mean = alone.weights[0] / alone.weights.sum() @ features
    norm = np.linalg.norm(features - mean) / np.linalg.norm(scaled)
    np.testing.assert_allclose(
        head.compute_logits(others).softmax(dim=1).numpy(),
        reference.predict_proba((others - mean) / norm),
        atol=2e-3,
    )


@pytest.mark.parametrize("problem", [make_problem(), make_wide_problem()], ids=["tall", "wide"])
def test_fit_with_the_scale_of_another_fitter_matches_a_fit_in_chunks(
    problem: LogisticProblem,
) -> None:
    first = HeadFitter(problem, tolerance=1e-7)
    first.fit(1e-1)
    (shared,) = HeadFitter(
        LogisticProblem(problem.features, problem.labels, problem.weights[:1], CLASSES),
        tolerance=1e-7,
        scaled_like=first,
    ).fit(1e-3)
    in_chunks = HeadFitter(problem, tolerance=1e-7, chunk_rows=7, max_cached_values=0).fit(1e-3)
    torch.testing.assert_close(
        shared.compute_logits(problem.features),
        in_chunks[0].compute_logits(problem.features),
        rtol=0,
        atol=2e-2,
    )
