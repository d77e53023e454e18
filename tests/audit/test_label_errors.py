"""Planted label errors are found, the most predicted first; certain predictions yield none."""

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.audit.label_errors import (
    collect_label_errors,
    describe_label_check,
    find_label_errors,
    is_better_than_chance,
    measure_label_check,
)
from finetune.types import Sample

Table = NDArray[np.float64]


def plant_errors(
    num_wrong: int, *, num_classes: int = 5
) -> tuple[Table, NDArray[np.int64], set[int]]:
    """Return probabilities of a good classifier, labels, and the rows of the wrong ones."""
    random = np.random.default_rng(3)
    truth = np.arange(200) % num_classes
    logits = random.normal(0, 0.7, (200, num_classes)) + 4 * np.eye(num_classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = random.choice(200, num_wrong, replace=False)
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + random.integers(1, num_classes, num_wrong)) % num_classes
    return probabilities, labels, set(wrong.tolist())


def find_by_loop(probabilities: Table, labels: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return rows and predicted classes by the paper's equations, image by image."""
    num_classes = probabilities.shape[1]
    thresholds = [
        np.mean([row[k] for row, label in zip(probabilities, labels, strict=True) if label == k])
        if k in labels
        else np.inf
        for k in range(num_classes)
    ]
    found = []
    for number, row in enumerate(probabilities):
        confident = [k for k in range(num_classes) if row[k] >= thresholds[k]]
        predicted = max(confident, key=lambda k: row[k]) if confident else labels[number]
        if predicted != labels[number]:
            found.append((row[predicted] - row[labels[number]], number, int(predicted)))
    return [(number, predicted) for _, number, predicted in sorted(found, key=lambda one: -one[0])]


@pytest.mark.parametrize("num_wrong", [10, 30])
def test_find_label_errors_finds_planted_errors(num_wrong: int) -> None:
    probabilities, labels, wrong = plant_errors(num_wrong)
    rows, predicted = find_label_errors(probabilities, labels)
    found = list(zip(rows.tolist(), predicted.tolist(), strict=True))
    assert found == find_by_loop(probabilities, labels)
    assert len(wrong & set(rows.tolist())) >= 0.8 * num_wrong
    assert len(set(rows.tolist()) - wrong) <= 2
    margins = probabilities[rows, predicted] - probabilities[rows, labels[rows]]
    assert (np.diff(margins) <= 0).all()
    assert (predicted != labels[rows]).all()


def test_find_label_errors_class_without_images_is_never_predicted() -> None:
    probabilities, labels, _ = plant_errors(20)
    wider = np.concatenate([probabilities * 0.5, np.full((200, 1), 0.5)], axis=1)
    rows, predicted = find_label_errors(wider, labels)
    assert len(rows)
    assert 5 not in predicted


def test_find_label_errors_class_of_low_confidence_is_not_flagged() -> None:
    labels = np.array([0] * 6 + [1] * 6)
    probabilities = np.array([[0.9, 0.1]] * 6 + [[0.6, 0.4]] * 6)
    rows, _ = find_label_errors(probabilities, labels)
    assert rows.tolist() == []


def test_find_label_errors_certain_predictions_have_none() -> None:
    labels = np.arange(30) % 3
    rows, predicted = find_label_errors(np.eye(3)[labels], labels)
    assert (rows.shape, predicted.shape) == ((0,), (0,))


def test_find_label_errors_no_images() -> None:
    rows, predicted = find_label_errors(np.empty((0, 3)), np.empty(0, np.int64))
    assert (len(rows), len(predicted)) == (0, 0)


def test_find_label_errors_predicted_class_is_more_probable_than_the_label() -> None:
    # the threshold of the third class is so low that all other images reach it
    probabilities = np.array(
        [[0.8, 0.15, 0.05]] * 6 + [[0.1, 0.85, 0.05]] * 6 + [[0.5, 0.48, 0.02]]
    )
    labels = np.array([0] * 6 + [1] * 6 + [2])
    rows, predicted = find_label_errors(probabilities, labels)
    assert rows.tolist() == predicted.tolist() == []


def test_collect_label_errors_names_classes_and_probabilities() -> None:
    probabilities, labels, _ = plant_errors(10)
    classes = [f"class {number}" for number in range(5)]
    samples = [Sample(f"{row}.png", classes[label]) for row, label in enumerate(labels)]
    rows, predicted = find_label_errors(probabilities, labels)
    candidates = collect_label_errors(samples, classes, probabilities)
    assert [one.path for one in candidates] == [f"{row}.png" for row in rows]
    assert [one.predicted_label for one in candidates] == [classes[k] for k in predicted]
    for one, row in zip(candidates, rows, strict=True):
        assert one.label == classes[labels[row]]
        assert one.label_probability == probabilities[row, labels[row]]
        assert one.predicted_probability == probabilities[row, classes.index(one.predicted_label)]


def test_label_check_is_the_accuracy_of_what_contradicts_labels() -> None:
    probabilities, labels, wrong = plant_errors(30)
    classes = [f"class {number}" for number in range(5)]
    samples = [Sample(f"{row}.png", classes[label]) for row, label in enumerate(labels)]
    check = measure_label_check(samples, classes, probabilities)
    assert check is not None
    num_right = sum(
        int(row.argmax() == label) for row, label in zip(probabilities, labels, strict=True)
    )
    assert (check.num_images, check.accuracy) == (200, num_right / 200)
    assert num_right <= 200 - len(wrong)
    assert f"heads that predict {num_right / 2:.1f}% of 200 images" in describe_label_check(
        check.to_json()
    )
    assert describe_label_check(None) == ""


def test_label_check_of_multi_label_images_counts_labels() -> None:
    samples = [Sample("a.png", "x", labels=("x",)), Sample("b.png", "x,y", labels=("x", "y"))]
    check = measure_label_check(samples, ["x", "y"], np.array([[0.9, 0.6], [0.2, 0.7]]))
    assert check is not None
    assert (check.num_images, check.accuracy) == (2, 0.5)
    text = describe_label_check(check.to_json(), is_multi_label=True)
    assert "50.0% of the labels of 2 images" in text


@pytest.mark.parametrize("seed", range(5))
def test_collect_label_errors_of_probabilities_at_chance_has_none(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 0.05, (72, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = random.permutation(np.arange(72) % 3)
    assert len(find_label_errors(probabilities, labels)[0]) > 10, "without the check"
    samples = [Sample(f"{row}.png", "abc"[label]) for row, label in enumerate(labels)]
    assert collect_label_errors(samples, ("a", "b", "c"), probabilities) == ()


def test_is_better_than_chance_agrees_with_permutations() -> None:
    random = np.random.default_rng(1)
    for strength in (0.0, 0.3, 0.6, 2.0):
        labels = random.choice(3, 40, p=(0.7, 0.2, 0.1))
        logits = random.normal(size=(40, 3)) + strength * np.eye(3)[labels]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        rows = np.arange(40)
        permuted = [probabilities[rows, random.permutation(labels)].mean() for _ in range(4000)]
        gain = probabilities[rows, labels].mean() - np.mean(permuted)
        deviations = gain / np.std(permuted)
        assert abs(deviations - 3) > 0.2, "the draw decides"
        assert is_better_than_chance(probabilities, labels) == (deviations > 3)


def test_collect_label_errors_judges_each_label_of_multi_label_images_by_itself() -> None:
    random = np.random.default_rng(0)
    truth = random.random((60, 2)) < 0.5
    probabilities = np.where(truth, 0.9, 0.1) + random.normal(scale=0.02, size=(60, 2))
    wrong = truth.copy()
    wrong[7, 1] = not wrong[7, 1]
    samples = [
        Sample(f"{row}.png", "", labels=tuple(np.array(["cat", "dog"])[labels]))
        for row, labels in enumerate(wrong)
    ]
    found = collect_label_errors(samples, ("cat", "dog"), probabilities)
    assert [one.path for one in found] == ["7.png"]
    expected = ("no dog", "dog") if truth[7, 1] else ("dog", "no dog")
    assert (found[0].label, found[0].predicted_label) == expected
    assert found[0].label_probability < 0.2 < 0.8 < found[0].predicted_probability
