"""Folds that keep groups together, compared with scikit-learn's and with plain loops."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from finetune.evaluation.grouped_folds import (
    assign_folds,
    count_groups,
    encode_groups,
    find_testable_rows,
    merge_groups,
)


def draw_images(
    num_images: int, num_classes: int, *, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return labels and groups of up to a dozen images, some with images of two classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(num_classes, size=num_images)
    names = [str(random.integers(num_images // 6)) if random.random() < 0.5 else "" for _ in labels]
    return labels, encode_groups(names)


def compute_imbalance(labels: NDArray[np.int64], folds: NDArray[np.int64]) -> float:
    """Return the mean deviation of the fraction of a class in a fold from a fifth."""
    counts = np.zeros((labels.max() + 1, 5))
    np.add.at(counts, (labels, folds), 1)
    return float(np.abs(counts / counts.sum(axis=1, keepdims=True) - 0.2).mean())


@pytest.mark.parametrize("counts", [[10, 10], [3, 50], [1, 1, 30]])
def test_assign_folds_splits_each_class_evenly(counts: list[int]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    folds = assign_folds(labels, 5)
    for label, count in enumerate(counts):
        sizes = np.bincount(folds[labels == label], minlength=5)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.sum() == count
    totals = np.bincount(folds, minlength=5)
    assert totals.max() - totals.min() <= 1
    np.testing.assert_array_equal(folds, assign_folds(labels, 5))


@pytest.mark.parametrize("num_classes", [2, 9])
def test_assign_folds_keeps_groups_and_is_as_even_as_scikit_learn(num_classes: int) -> None:
    labels, groups = draw_images(600, num_classes)
    folds = assign_folds(labels, 5, groups=groups)
    for group in np.unique(groups):
        assert len(set(folds[groups == group])) == 1
    reference = np.empty(600, np.int64)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, rows) in enumerate(splitter.split(np.zeros(600), labels, groups)):
            reference[rows] = fold
    assert compute_imbalance(labels, folds) <= compute_imbalance(labels, reference) + 0.01


def test_assign_folds_contiguous_class_fills_folds_in_order() -> None:
    labels = np.array([0, 1] * 20)
    folds = assign_folds(labels, 5, contiguous_classes={1})
    np.testing.assert_array_equal(folds[labels == 1], np.repeat(np.arange(5), 4))
    assert (np.diff(folds[labels == 0]) < 0).any(), "the other class is shuffled"


def test_assign_folds_without_images_is_empty() -> None:
    assert assign_folds(np.empty(0, np.int64), 5).shape == (0,)


def test_merge_groups_connects_across_columns() -> None:
    users = encode_groups(["a", "", "a", "", "b", ""])
    duplicates = encode_groups(["", "", "1", "1", "", ""])
    np.testing.assert_array_equal(users, [0, 1, 0, 3, 4, 5])
    merged = merge_groups(users, duplicates)
    np.testing.assert_array_equal(merged, [0, 1, 0, 0, 4, 5])
    assert count_groups(merged) == 1


def test_find_testable_rows_needs_the_class_in_another_fold() -> None:
    labels, folds = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 2, 2, 0])
    is_testable = find_testable_rows(labels, folds)
    np.testing.assert_array_equal(is_testable, [True, True, False, False, False])
