"""Tests of ``finetune.commands.compare.label_precision``, against a plain bootstrap loop."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from finetune.commands.compare.label_precision import LabelPrecision, measure_label_precision
from finetune.evaluation.paired_comparison import NUM_RESAMPLES
from finetune.evaluation.significance import compute_wilson_interval

NUM_IMAGES, NUM_LABELS = 30, 3

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]


def draw(lift: float) -> tuple[Scores, Labels]:
    """Return scores of labels that exceed those of images without them by so much."""
    random = np.random.default_rng(0)
    is_true = random.random((NUM_IMAGES, NUM_LABELS)) < 0.4
    return random.normal(size=(NUM_IMAGES, NUM_LABELS)) + lift * is_true, is_true


def measure(
    scores: Scores, is_true: Labels, groups: NDArray[np.int64] | None = None
) -> LabelPrecision:
    groups = np.arange(NUM_IMAGES) if groups is None else groups
    value = average_precision_score(is_true, scores)
    return measure_label_precision(scores, is_true, groups_N=groups, value=value)


def test_resamples_are_those_of_a_plain_loop() -> None:
    scores, is_true = draw(1.0)
    found = measure(scores, is_true).resampled
    random = np.random.default_rng(0)
    for value in found[:20]:
        counts = np.bincount(random.integers(0, NUM_IMAGES, NUM_IMAGES), minlength=NUM_IMAGES)
        rows = np.repeat(np.arange(NUM_IMAGES), counts)
        assert value == pytest.approx(average_precision_score(is_true[rows], scores[rows]))
    assert len(found) == NUM_RESAMPLES


def test_interval_holds_the_value_and_is_wider_with_groups() -> None:
    scores, is_true = draw(1.0)
    twice = (np.repeat(scores[:15], 2, axis=0), np.repeat(is_true[:15], 2, axis=0))
    alone = measure(*twice)
    grouped = measure(*twice, groups=np.repeat(np.arange(15), 2) * 2)
    assert grouped.interval[0] < alone.interval[0] < alone.value < alone.interval[1]
    assert grouped.interval[1] > alone.interval[1]


def test_interval_of_perfect_order_is_not_a_point() -> None:
    scores, is_true = draw(100.0)
    found = measure(scores, is_true)
    assert found.value == 1
    num_labelled = int(is_true.any(axis=1).sum())
    assert found.interval == compute_wilson_interval(num_labelled, num_labelled)


def test_p_value_is_small_for_a_difference_and_one_for_none() -> None:
    good, poor = (measure(*draw(lift)) for lift in (4.0, 0.0))
    assert poor.compute_p_value(good) == pytest.approx(2 / (NUM_RESAMPLES + 1))
    low, high = poor.compute_difference_interval(good)
    assert low < poor.value - good.value < high < 0
    assert good.compute_p_value(good) == 1


def test_resamples_without_any_label_are_left_out() -> None:
    random = np.random.default_rng(0)
    is_true = np.arange(60)[:, None] < 2  # a resample lacks both images in 13% of cases
    good, poor = (
        measure(random.normal(size=(60, 1)) + lift * is_true, is_true, np.arange(60))
        for lift in (2.0, 0.0)
    )
    is_defined = ~np.isnan(good.resampled)
    assert is_defined.mean() == pytest.approx(1 - (58 / 60) ** 60, abs=0.03)
    assert (is_defined == ~np.isnan(poor.resampled)).all()
    change = (good.resampled - poor.resampled)[is_defined]
    assert good.compute_difference_interval(poor) == pytest.approx(
        tuple(np.percentile(change, (2.5, 97.5)))
    )
    fewer = int(min((change <= 0).sum(), (change >= 0).sum()))
    assert good.compute_p_value(poor) == pytest.approx(2 * (fewer + 1) / (len(change) + 1))
    assert good.compute_p_value(poor) < 0.05
    low, high = (math.log(end / (1 - end)) for end in good.interval)
    spread = good.resampled[is_defined].std() / (good.value * (1 - good.value))
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=1e-3)
