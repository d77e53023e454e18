"""Tests of the metrics of predictions, compared with those of evaluations and of libraries."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.evaluation.fold_statistics import LABEL_METHOD
from finetune.evaluation.metrics import calibration_error, evaluate_probabilities
from finetune.evaluation.multi_label.label_metrics import evaluate_labels
from finetune.report.label_metrics_intervals import (
    MAX_CELLS,
    MIN_POSITIVES,
    NUM_RESAMPLES,
    compute_label_metrics,
    measure_label_intervals,
)
from finetune.report.reliability import measure_reliability, undo_temperature
from finetune.report.split_metrics import measure_split, shift_probabilities
from tests.support.reports import build_predictions, draw_probabilities

NUM_CLASSES = 7
RANDOM = np.random.default_rng(5)
TARGET = RANDOM.integers(0, NUM_CLASSES - 1, 120)  # the last class has no image
TABLE = draw_probabilities(TARGET, NUM_CLASSES, RANDOM)


def test_measure_split_equals_evaluation() -> None:
    counts = list(range(1, NUM_CLASSES + 1))
    expected = evaluate_probabilities(
        torch.from_numpy(TABLE),
        torch.from_numpy(TARGET),
        classes=[str(number) for number in range(NUM_CLASSES)],
        train_counts=counts,
    )
    rarest = tuple(int(name) for name in expected.rarest_classes)
    measured = measure_split(build_predictions(TARGET, TABLE), rarest)
    assert measured.values.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        # torchmetrics averages in float32
        assert measured.values[name] == pytest.approx(value, abs=1e-6), name
        low, high = measured.intervals[name]
        assert low < measured.values[name] < high


def test_measure_split_interval_of_accuracy_is_near_that_of_wilson() -> None:
    expected = evaluate_probabilities(
        torch.from_numpy(TABLE), torch.from_numpy(TARGET), classes=list("abcdefg")
    ).accuracy_interval
    assert measure_split(build_predictions(TARGET, TABLE)).intervals["accuracy"] == pytest.approx(
        expected, abs=0.02
    )


def test_measure_split_of_dependent_images_has_wider_interval() -> None:
    single = build_predictions(TARGET, TABLE)
    copies = build_predictions(np.tile(TARGET, 4), np.tile(TABLE, (4, 1)))
    grouped = type(copies)(
        copies.paths, copies.digests, np.tile(single.groups, 4), copies.target, copies.probabilities
    )
    widths = [
        high - low for low, high in (measure_split(one).intervals["accuracy"]
                                     for one in (single, copies, grouped))
    ]  # fmt: skip
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.15)
    assert widths[2] == pytest.approx(widths[0], rel=0.1)


def test_measure_split_interval_contains_the_macro_f1_of_many_small_classes() -> None:
    target = np.arange(300) % 30
    table = draw_probabilities(target, 30, np.random.default_rng(2))
    measured = measure_split(build_predictions(target, table))
    low, high = measured.intervals["macro_f1"]
    # percentiles alone lie above the value
    assert (low + high) / 2 == pytest.approx(measured.values["macro_f1"], abs=0.01)
    few = measure_split(build_predictions(target[:90], table[:90]))
    assert "macro_f1" not in few.intervals
    assert "loss" in few.intervals


def test_measure_split_without_errors_has_no_interval_of_zero_width() -> None:
    table = np.eye(2)[[0, 1] * 20] * 0.8 + 0.1
    measured = measure_split(build_predictions([0, 1] * 20, table))
    assert measured.values["macro_f1"] == 1.0
    assert measured.intervals == {}


def test_label_metrics_equal_those_of_evaluation() -> None:
    random = np.random.default_rng(6)
    target = (random.random((90, 4)) < 0.4).astype(np.float64)  # enough of each for intervals
    table = np.round(0.2 * target + 0.8 * random.random((90, 4)), 2)  # some scores are equal
    thresholds = np.array([0.3, 0.5, 0.6, 0.4])
    expected = evaluate_labels(
        torch.from_numpy(table),
        torch.from_numpy(target),
        classes=list("abcd"),
        thresholds=thresholds.tolist(),
    ).metrics
    computed = compute_label_metrics(np.ones((1, 90)), table, target, thresholds)
    for name, values in computed.items():
        assert values[0] == pytest.approx(expected[name], abs=1e-6), name
    intervals = measure_label_intervals(
        build_predictions(target, table), tuple(thresholds.tolist())
    )
    assert intervals.keys() == computed.keys()
    for name, (low, high) in intervals.items():
        assert low < computed[name][0] < high


@pytest.mark.parametrize(
    ("positives", "is_grouped", "missing"),
    [
        ([9, 40, 40], False, {"macro_f1", "mean_average_precision"}),
        ([10, 40, 40], False, {"mean_average_precision"}),
        ([20, 40, 40], False, set()),
        ([20, 40, 0], False, set()),
        ([20, 40, 40], True, {"mean_average_precision"}),
    ],
)
def test_means_over_labels_have_no_interval_where_a_label_is_rare(
    positives: list[int], missing: set[str], *, is_grouped: bool
) -> None:
    random = np.random.default_rng(0)
    target = np.zeros((100, 3))
    for label, count in enumerate(positives):
        target[np.arange(count) * (100 // max(1, count)), label] = 1
    table = np.clip(0.25 + 0.3 * target + 0.4 * random.random(target.shape), 0, 1)
    one = build_predictions(target, table)
    if is_grouped:  # pairs of images, each twice a positive of the first label or not at all
        order = np.argsort(-target[:, 0], kind="stable")
        one = replace(build_predictions(target[order], table[order]), groups=np.arange(100) // 2)
    intervals = measure_label_intervals(one, (0.5, 0.5, 0.5))
    assert {"micro_f1", "micro_average_precision", "loss"} <= intervals.keys()
    assert {"macro_f1", "mean_average_precision"} - intervals.keys() == missing


def test_reliability_error_equals_calibration_error_of_evaluation() -> None:
    reliability = measure_reliability(TABLE, TARGET)
    expected = calibration_error(torch.from_numpy(TABLE), torch.from_numpy(TARGET))
    assert reliability.error == pytest.approx(expected, abs=1e-6)
    assert sum(one.count for one in reliability.bins) == len(TARGET)


def test_method_of_folds_names_the_conditions_of_the_bootstrap() -> None:
    assert f"only if each label is in {MIN_POSITIVES['macro_f1']} of them" in LABEL_METHOD
    assert f"if it is in {MIN_POSITIVES['mean_average_precision']} or more" in LABEL_METHOD
    assert f"more than {MAX_CELLS // NUM_RESAMPLES:,} pairs of image and label" in LABEL_METHOD


def test_reliability_of_labels_counts_each_label() -> None:
    target = (RANDOM.random((30, 4)) < 0.3).astype(np.float32)
    table = RANDOM.random((30, 4))
    reliability = measure_reliability(table, target)
    assert reliability.num_predictions == 120
    evaluation = evaluate_labels(
        torch.from_numpy(table), torch.from_numpy(target), classes=list("abcd"), thresholds=None
    )
    assert reliability.loss == pytest.approx(evaluation.metrics["loss"], rel=1e-6)


def test_undo_temperature_returns_the_probabilities_before_it() -> None:
    logits = RANDOM.normal(size=(20, NUM_CLASSES)) * 3
    shift = RANDOM.normal(size=NUM_CLASSES)

    def compute(temperature: float) -> np.ndarray:
        return torch.softmax(torch.from_numpy(logits / temperature + shift), dim=1).numpy()

    raw = undo_temperature(compute(1.7), 1.7, shift, is_multi_label=False)
    assert raw == pytest.approx(compute(1.0), abs=1e-9)
    labels = 1 / (1 + np.exp(-logits / 1.7))
    raw = undo_temperature(labels, 1.7, None, is_multi_label=True)
    assert raw == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-9)


def test_shift_probabilities_is_bayes_rule() -> None:
    ratio = np.array([1.0, 2.0, 0.5, 1.0, 4.0, 1.0, 1.0])
    weighted = TABLE * ratio
    expected = weighted / weighted.sum(axis=1, keepdims=True)
    assert shift_probabilities(TABLE, np.log(ratio)) == pytest.approx(expected)
