"""Heads are those of scikit-learn, to convergence, however the rows are read."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from finetune.probe import logistic
from finetune.probe.logistic import HeadFitter, LinearHead, LogisticProblem

CLASSES = 4


def problem(num_rows: int = 300, *, seed: int = 0, shift: float = 3.0) -> LogisticProblem:
    """Return overlapping clouds, far from the origin, of unequal weight."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, num_rows)
    centres = random.normal(size=(CLASSES, 8))
    features = (centres[labels] + random.normal(size=(num_rows, 8)) + shift).astype(np.float32)
    return LogisticProblem(features, labels, random.uniform(0.2, 3.0, (1, num_rows)), CLASSES)


def scaled(given: LogisticProblem) -> NDArray[np.float64]:
    """Return the features as the penalty sees them."""
    features = np.asarray(given.features[:], np.float64)
    share = given.weights[0] / given.weights.sum()
    centred = features - share @ features
    return np.asarray(centred / np.sqrt(share @ np.square(centred).sum(axis=1)))


@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_a_head_is_that_of_scikit_learn(penalty: float) -> None:
    given = problem()
    (head,) = HeadFitter(given, tolerance=1e-7).fit(penalty)
    reference = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
    share = given.weights[0] / given.weights.sum()
    reference.fit(scaled(given), given.labels, sample_weight=share)
    found = head.compute_logits(given.features).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, reference.predict_proba(scaled(given)), atol=2e-3)


def test_heads_that_are_fitted_together_are_those_fitted_alone() -> None:
    given = problem()
    folds = np.stack([given.weights[0] * (np.arange(300) % 3 != fold) for fold in range(3)])
    together = HeadFitter(
        LogisticProblem(given.features, given.labels, folds, CLASSES), tolerance=1e-7
    ).fit(1e-2)
    for head, weights in zip(together, folds, strict=True):
        (alone,) = HeadFitter(
            LogisticProblem(given.features, given.labels, weights[None], CLASSES), tolerance=1e-7
        ).fit(1e-2)
        # the scale, and with it the meaning of the penalty, is that of all rows
        found, wanted = (h.compute_logits(given.features).softmax(dim=1) for h in (head, alone))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2)


def test_rows_may_be_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem()
    (whole,) = HeadFitter(given, tolerance=1e-7).fit(1e-3)
    monkeypatch.setattr(logistic, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(logistic, "_MAX_CACHED_VALUES", 0)
    (parts,) = HeadFitter(given, tolerance=1e-7).fit(1e-3)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=0, atol=2e-3)
    torch.testing.assert_close(
        parts.compute_logits(given.features),
        whole.compute_logits(given.features),
        rtol=0,
        atol=2e-2,
    )


def test_only_slices_are_read() -> None:
    given = problem()

    class Sliced:
        shape = given.features.shape
        most = 0

        def __getitem__(self, rows: slice) -> NDArray[np.float32]:
            found = given.features[rows]
            Sliced.most = max(Sliced.most, len(found))
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logistic, "_CHUNK_ROWS", 64)
        patch.setattr(logistic, "_MAX_CACHED_VALUES", 0)
        HeadFitter(LogisticProblem(Sliced(), given.labels, given.weights, CLASSES)).fit(1e-3)
    assert 0 < Sliced.most <= 64


def test_a_row_without_weight_changes_nothing() -> None:
    given = problem()
    weights = given.weights.copy()
    weights[0, ::3] = 0
    kept = weights[0] > 0
    without = LogisticProblem(
        given.features[:][kept], given.labels[kept], weights[:, kept], CLASSES
    )
    (some,) = HeadFitter(
        LogisticProblem(given.features, given.labels, weights, CLASSES), tolerance=1e-7
    ).fit(1e-3)
    (fewer,) = HeadFitter(without, tolerance=1e-7).fit(1e-3)
    torch.testing.assert_close(
        some.compute_logits(given.features), fewer.compute_logits(given.features), rtol=0, atol=2e-2
    )


def test_the_path_does_not_matter() -> None:
    given = problem()
    (direct,) = HeadFitter(given, tolerance=1e-7).fit(1e-4)
    fitter = HeadFitter(given, tolerance=1e-7)
    for penalty in (1e-1, 1e-2, 1e-3):
        fitter.fit(penalty)
    (later,) = fitter.fit(1e-4)
    torch.testing.assert_close(
        later.compute_logits(given.features),
        direct.compute_logits(given.features),
        rtol=0,
        atol=5e-2,
    )


def test_features_that_are_all_the_same_leave_the_class_sizes() -> None:
    labels = np.repeat([0, 1, 2], [6, 3, 1])
    given = LogisticProblem(np.full((10, 5), 2.5, np.float32), labels, np.ones((1, 10)), 3)
    (head,) = HeadFitter(given).fit(1e-2)
    found = head.compute_logits(given.features).softmax(dim=1)[0]
    np.testing.assert_allclose(found.numpy(), [0.6, 0.3, 0.1], atol=1e-3)


def test_no_rows_have_no_logits() -> None:
    head = LinearHead(torch.zeros(3, 5), torch.zeros(3))
    assert head.compute_logits(np.zeros((0, 5), np.float32)).shape == (0, 3)
