"""Tests of metrics of labels in a cross-validation, against a plain loop and scikit-learn."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from finetune.evaluation.multi_label.label_folds import (
    choose_fold_thresholds,
    evaluate_label_folds,
)
from finetune.evaluation.multi_label.label_metrics import evaluate_labels

NUM_IMAGES = 90
CLASSES = ("a", "b", "c")


def make_predictions() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return probabilities and targets, both of shape (N, K), and folds, shape (N,)."""
    random = np.random.default_rng(0)
    targets = (random.random((NUM_IMAGES, 3)) < np.array([0.5, 0.3, 0.04])).astype(np.int64)
    p = 1 / (1 + np.exp(-random.normal(1.5 * targets - 1, 1)))
    return p, targets, random.permutation(np.arange(NUM_IMAGES) % 3 + 1)


def find_threshold(p: NDArray[np.float64], target: NDArray[np.int64]) -> float:
    """Return the threshold of the highest F1, of those halfway between two probabilities."""
    scores = [0.0, *sorted(p.tolist())]
    middles = [(one + other) / 2 for one, other in pairwise(scores)]
    best, best_f1 = 0.5, -1.0
    for middle in middles:
        hits = (target * (p >= middle)).sum()
        f1 = 2 * hits / (target.sum() + (p >= middle).sum())
        if f1 >= best_f1 - 1e-12:
            best, best_f1 = middle, max(f1, best_f1)
    return best


def test_fold_thresholds_are_those_of_the_other_folds() -> None:
    p, targets, folds = make_predictions()
    found = choose_fold_thresholds(torch.from_numpy(p), torch.from_numpy(targets), folds)
    for fold in (1, 2, 3):
        others = folds != fold
        common = find_threshold(p[others].ravel(), targets[others].ravel())
        for label in range(3):
            is_rare = targets[others, label].sum() < 10
            assert is_rare == (label == 2)
            expected = (
                common if is_rare else find_threshold(p[others, label], targets[others, label])
            )
            assert found[folds == fold, label] == pytest.approx(expected)


def test_metrics_of_folds_and_of_all_images_equal_scikit_learn() -> None:
    p, targets, folds = make_predictions()
    tensors = torch.from_numpy(p), torch.from_numpy(targets)
    thresholds = choose_fold_thresholds(*tensors, folds)
    joined = evaluate_labels(*tensors, classes=CLASSES, image_thresholds_NK=thresholds)
    evaluations = evaluate_label_folds(*tensors, folds, classes=CLASSES)
    assert [one.num_images for one in evaluations] == [30, 30, 30]
    for evaluation, rows in zip(
        [joined, *evaluations], [folds > 0, *(folds == fold for fold in (1, 2, 3))], strict=True
    ):
        flags = p[rows] >= thresholds[rows]
        truth = targets[rows]
        expected = {
            "mean_average_precision": average_precision_score(truth, p[rows]),
            "micro_average_precision": average_precision_score(truth, p[rows], average="micro"),
            "macro_f1": f1_score(truth, flags, average="macro", zero_division=0),
            "micro_f1": f1_score(truth, flags, average="micro"),
            "subset_accuracy": (truth == flags).all(axis=1).mean(),
            "loss": -np.log(np.where(truth > 0, p[rows], 1 - p[rows])).mean(),
        }
        if all(stats.support for stats in evaluation.per_label):
            assert dict(evaluation.metrics) == pytest.approx(expected)
    own = evaluate_labels(*tensors, classes=CLASSES, thresholds=[0.5] * 3)
    assert joined.metrics["macro_f1"] != own.metrics["macro_f1"]
