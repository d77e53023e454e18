"""Planted wrong labels are found, the surest first, and nothing is where all is certain."""

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.audit.label_errors import find_label_errors

Table = NDArray[np.float64]


def planted(num_wrong: int, *, num_classes: int = 5) -> tuple[Table, NDArray[np.int64], set[int]]:
    """Return probabilities of a good classifier, labels of which some are wrong, and these."""
    random = np.random.default_rng(3)
    truth = np.arange(200) % num_classes
    logits = random.normal(0, 0.7, (200, num_classes)) + 4 * np.eye(num_classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = random.choice(200, num_wrong, replace=False)
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + random.integers(1, num_classes, num_wrong)) % num_classes
    return probabilities, labels, set(wrong.tolist())


def by_hand(probabilities: Table, labels: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return what the paper's equations give, image by image."""
    num_classes = probabilities.shape[1]
    thresholds = [
        np.mean([row[k] for row, label in zip(probabilities, labels, strict=True) if label == k])
        if k in labels
        else np.inf
        for k in range(num_classes)
    ]
    found = []
    for number, row in enumerate(probabilities):
        sure = [k for k in range(num_classes) if row[k] >= thresholds[k]]
        likely = max(sure, key=lambda k: row[k]) if sure else labels[number]
        if likely != labels[number]:
            found.append((row[likely] - row[labels[number]], number, int(likely)))
    return [(number, likely) for _, number, likely in sorted(found, key=lambda one: -one[0])]


@pytest.mark.parametrize("num_wrong", [10, 30])
def test_planted_labels_are_found(num_wrong: int) -> None:
    probabilities, labels, wrong = planted(num_wrong)
    rows, likely = find_label_errors(probabilities, labels)
    found = list(zip(rows.tolist(), likely.tolist(), strict=True))
    assert found == by_hand(probabilities, labels)
    assert len(wrong & set(rows.tolist())) >= 0.8 * num_wrong
    assert len(set(rows.tolist()) - wrong) <= 2
    margins = probabilities[rows, likely] - probabilities[rows, labels[rows]]
    assert (np.diff(margins) <= 0).all()
    assert (likely != labels[rows]).all()


def test_a_class_without_images_is_never_likely() -> None:
    probabilities, labels, _ = planted(20)
    wider = np.concatenate([probabilities * 0.5, np.full((200, 1), 0.5)], axis=1)
    rows, likely = find_label_errors(wider, labels)
    assert len(rows)
    assert 5 not in likely


def test_a_class_that_is_seldom_sure_is_not_in_doubt_for_that() -> None:
    labels = np.array([0] * 6 + [1] * 6)
    probabilities = np.array([[0.9, 0.1]] * 6 + [[0.6, 0.4]] * 6)
    rows, _ = find_label_errors(probabilities, labels)
    assert rows.tolist() == []


def test_where_all_is_certain_nothing_is_in_doubt() -> None:
    labels = np.arange(30) % 3
    rows, likely = find_label_errors(np.eye(3)[labels], labels)
    assert (rows.shape, likely.shape) == ((0,), (0,))


def test_no_images() -> None:
    rows, likely = find_label_errors(np.empty((0, 3)), np.empty(0, np.int64))
    assert (len(rows), len(likely)) == (0, 0)
