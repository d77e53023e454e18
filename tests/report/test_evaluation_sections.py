"""Tests of the sections on confusions, calibration and data: what they say of unusual runs."""

import numpy as np
import pytest

from finetune.report.page import render_report
from finetune.report.run_facts import RunFacts
from finetune.report.sections.data_section import build_data
from finetune.report.sections.evaluation.confusion_section import (
    NUM_PAIRS,
    build_confusion,
    estimate_width,
)
from finetune.report.sections.evaluation.metrics_section import build_metrics
from tests.report.test_sections import build_facts
from tests.support.reports import build_predictions


@pytest.mark.parametrize(("largest", "expected"), [(1, 0), (2, NUM_PAIRS)])
def test_pairs_of_one_image_each_are_not_listed_by_chance(largest: int, expected: int) -> None:
    target = np.array([*range(20), *[0] * (largest - 1)])
    table = np.eye(20)[(target + 1) % 20]  # each class is predicted as the next one
    facts = build_facts(20, predictions={"val": build_predictions(target, table)})
    section = build_confusion(facts)
    assert section is not None
    assert len(section.pairs) == expected
    page = render_report(facts, version="1")
    text = {1: "Each of 20 pairs of classes is confused once", 2: "8 further pairs with at most 1"}
    assert text[largest] in page
    assert "with fewer images" not in page


def test_long_names_of_classes_break_and_leave_the_axis_of_the_matrix_free() -> None:
    names = ("W" * 22, "一" * 22, "b")
    facts = build_facts(3, classes=names)
    section = build_confusion(facts)
    assert section is not None
    assert section.heat_map is not None
    assert section.heat_map.is_turned
    for name in names:  # the names end 8 px before the matrix; the title of the axis ends at 18 px
        assert section.heat_map.left - 8 - estimate_width(name) >= 18
    left, cell = section.heat_map.left, section.heat_map.cell
    assert section.heat_map.width > left + 1.5 * cell + estimate_width("一" * 21) * 0.71
    assert estimate_width("一" * 4) > estimate_width("W" * 4) - 1e-6 > estimate_width("b" * 4)
    assert f'<td class="break">{section.pairs[0].label}</td>' in render_report(facts, version="1")


def test_calibration_of_labels_is_told_by_the_images_that_have_them() -> None:
    predictions = build_predictions(np.eye(3, dtype=np.float32), np.full((3, 3), 0.5))
    card = {"thresholds": [0.5] * 3, "temperature": 1.5, "facts": {"metrics": {"val": {}}}}
    page = render_report(build_facts(card=card, predictions={"val": predictions}), version="1")
    page = page.partition('<section id="calibration"')[2].partition("</section>")[0]
    assert "fraction of images that have the label" in page
    assert ">have the label</text>" in page
    assert ">predicted probability</text>" in page
    assert "correct" not in page
    assert "confidence" not in page.replace('class="confidence"', "")
    single = render_report(build_facts(), version="1")
    assert "fraction of correct predictions" in single


@pytest.mark.parametrize("is_used", [True, False])
def test_effect_of_a_temperature_that_is_not_used_is_told_as_such(is_used: bool) -> None:
    low, high = ({"loss": loss, "calibration_error": 5 * loss} for loss in (0.0101, 0.0104))
    calibration = {
        "temperature": 0.8 if is_used else 1.0,
        "fitted_temperature": 0.8,
        "num_images": 41,
        "before": high if is_used else low,
        "after": low if is_used else high,
    }
    metrics = {"metrics": {"val": {}}, "calibration": calibration}
    facts = build_facts(card={"temperature": calibration["temperature"], "facts": metrics})
    page = render_report(facts, version="1")
    page = page.partition('<section id="calibration"')[2].partition("</section>")[0]
    reason = (
        "A temperature of 0.8 was fitted to 41 validation images, and is not used: cross-validated "
        "on them, it does not lower the log loss, which is 0.0101 without it and 0.0104 with it."
    )
    assert (reason in page) != is_used
    assert ("Without (used)" in page) != is_used
    assert ("With (not used)" in page) != is_used
    assert ("divided by a temperature of 0.8" in page) == is_used
    assert ("With temperature</strong>" in page) == is_used


def test_small_classes_are_those_with_few_training_images_after_the_split() -> None:
    audit = {"duplicates": [], "label_errors": None, "under_represented_classes": ["class 1"]}
    counts = {"train": [19, 15, 20], "val": [5, 5, 5]}  # the audit has counted 24, 20 and 25
    section = build_data(build_facts(class_counts=counts, audit=audit))
    assert section is not None
    [line] = [one for one in section.audit if "fewer than 20 training images" in one.kind]
    assert (line.count, line.remark) == (2, "class 1, class 0")


def test_choices_of_folds_are_those_of_their_held_out_images() -> None:
    folds = {
        "out_of_fold": {"metrics": {"accuracy": 0.9}},
        "folds": [
            {"validation_choices": ["the epoch", "the temperature"]},
            {"validation_choices": ["the temperature", "when training ended"]},
            {},  # of an earlier release
        ],
    }
    section = build_metrics(RunFacts(name="cv", path="cv", classes=("a", "b"), folds=folds))
    assert section is not None
    assert section.choices == (
        "The held-out images of each fold also chose the epoch, the temperature and when training "
        "ended: metrics of the held-out images are somewhat optimistic. Compare models on test "
        "images."
    )
