"""Paired comparison of two models on multi-label images."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from finetune.evaluation.multi_label.paired_labels import compare_paired_labels

NUM_IMAGES, NUM_LABELS = 80, 3
HALF = [0.5] * NUM_LABELS


def draw(seed: int, *, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels, which are the better predicted the sharper they are."""
    random = np.random.default_rng(seed)
    labels = random.random((NUM_IMAGES, NUM_LABELS)) < 0.3
    logits = np.where(labels, sharpness, -sharpness) + random.normal(0, 1.5, labels.shape)
    return np.round(1 / (1 + np.exp(-logits)), 2), labels


def test_differences_are_those_of_scikit_learn() -> None:
    before, labels = draw(0, sharpness=0.5)
    after, _ = draw(0, sharpness=2.0)
    result = compare_paired_labels(before, after, labels, thresholds=(HALF, HALF), seed=0)
    entry = result.differences["mean_average_precision"]

    assert entry.before == pytest.approx(average_precision_score(labels, before))
    assert entry.after == pytest.approx(average_precision_score(labels, after))
    assert entry.low < entry.difference < entry.high
    assert entry.verdict == "better"
    assert result.differences["loss"].verdict == "better"
    right = [((table >= 0.5) == labels).all(axis=1) for table in (before, after)]
    assert result.num_only_first == (right[0] & ~right[1]).sum()
    assert result.num_only_second == (right[1] & ~right[0]).sum()
    assert result.differences["subset_accuracy"].after == pytest.approx(right[1].mean())


@pytest.mark.runs
def test_interval_is_that_of_resampled_images() -> None:
    before, labels = draw(1, sharpness=1.0)
    after, _ = draw(1, sharpness=1.3)
    result = compare_paired_labels(before, after, labels, thresholds=(HALF, HALF), seed=0)
    random = np.random.default_rng(9)
    changes = []
    for _ in range(400):  # a plain loop
        rows = random.integers(0, NUM_IMAGES, NUM_IMAGES)
        first, second = (average_precision_score(labels[rows], t[rows]) for t in (before, after))
        changes.append(second - first)
    low, high = np.percentile(changes, (2.5, 97.5))
    entry = result.differences["mean_average_precision"]

    assert (entry.low, entry.high) == pytest.approx((low, high), abs=0.25 * (high - low))


def test_equal_models_do_not_differ_and_each_has_its_thresholds() -> None:
    table, labels = draw(2, sharpness=1.0)
    same = compare_paired_labels(table, table, labels, thresholds=(HALF, HALF), seed=0)
    other = compare_paired_labels(table, table, labels, thresholds=(HALF, [1.1] * 3), seed=0)

    assert all(one.difference == 0 for one in same.differences.values())
    assert same.mcnemar_p_value == 1
    assert other.num_only_first > 0
    with pytest.raises(ValueError, match="at least one image with a label"):
        compare_paired_labels(table, table, labels & False, thresholds=(HALF, HALF), seed=0)


def test_images_of_a_group_are_resampled_together() -> None:
    before, labels = (np.repeat(one, 4, axis=0) for one in draw(3, sharpness=1.0))
    after = np.repeat(draw(3, sharpness=1.4)[0], 4, axis=0)
    groups = np.repeat(np.arange(NUM_IMAGES), 4)
    alone, grouped = (
        compare_paired_labels(before, after, labels, thresholds=(HALF, HALF), seed=0, groups_N=one)
        for one in (None, groups)
    )
    widths = [
        one.differences["loss"].high - one.differences["loss"].low for one in (alone, grouped)
    ]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.15)


def test_resamples_without_any_label_are_left_out() -> None:
    labels = np.arange(60)[:, None] < 2  # a resample lacks both images in 13% of cases
    before = np.linspace(0.1, 0.9, 60)[:, None]
    after = before[::-1].copy()
    result = compare_paired_labels(before, after, labels, thresholds=([0.5], [0.5]), seed=0)
    entry = result.differences["mean_average_precision"]

    assert entry.before < 0.1
    assert entry.after == 1
    assert entry.low > 0.8
    assert entry.verdict == "better"
