"""Tests of sections: what they show of made facts, and that they are left out without them."""

import base64
import hashlib
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from finetune.report.comparison.overlay_section import build_overlay
from finetune.report.kept_weights import describe_kept_weights, find_best_epoch
from finetune.report.number_formats import format_difference, format_metric_in_sentence
from finetune.report.page import render_report
from finetune.report.phases import find_phases
from finetune.report.run_facts import RunFacts
from finetune.report.sections.data_section import build_data
from finetune.report.sections.evaluation.calibration_section import build_calibration
from finetune.report.sections.evaluation.class_section import build_classes
from finetune.report.sections.evaluation.confusion_section import (
    MAX_DRAWN_CLASSES,
    build_confusion,
    find_confused_pairs,
)
from finetune.report.sections.evaluation.metrics_section import build_metrics
from finetune.report.sections.training.curves_section import build_curves
from tests.support.reports import build_predictions, draw_probabilities

EVIL = "</script><script>alert(1)</script>"


def build_facts(num_classes: int = 3, **fields: object) -> RunFacts:
    """Return facts of a run with predictions of its validation images."""
    random = np.random.default_rng(0)
    target = np.arange(10 * num_classes) % num_classes
    table = draw_probabilities(target, num_classes, random)
    accuracy = float((table.argmax(axis=1) == target).mean())
    facts = {"metrics": {"val": {"loss": 1.0, "accuracy": accuracy}}, "evaluations": {}}
    base = RunFacts(
        name="run",
        path="runs/run",
        card={"backbone": "resnet18", "facts": facts, "temperature": 2.0},
        classes=tuple(f"class {number}" for number in range(num_classes)),
        class_counts={"train": [20] * num_classes},
        num_images={"train": 20 * num_classes, "val": len(target)},
        predictions={"val": build_predictions(target, table)},
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def build_row(epoch: int, **values: float) -> dict[str, float]:
    """Return a row of metrics; ``val_loss`` is ``val/loss``."""
    return {"epoch": float(epoch), **{k.replace("__", "/"): v for k, v in values.items()}}


def test_confusion_matrix_is_drawn_up_to_a_number_of_classes() -> None:
    drawn = build_confusion(build_facts(MAX_DRAWN_CLASSES))
    many = build_confusion(build_facts(MAX_DRAWN_CLASSES + 1))
    assert drawn is not None
    assert many is not None
    assert drawn.heat_map is not None
    assert len(drawn.heat_map.cells) == MAX_DRAWN_CLASSES**2
    assert many.heat_map is None
    assert len(many.pairs) > 0


def test_confused_pairs_are_sorted_by_images_and_leave_out_hits() -> None:
    matrix = np.array([[5, 1, 4], [0, 4, 1], [2, 0, 2]])
    pairs = find_confused_pairs(matrix, ("a", "b", "c"))
    assert [(p.label, p.predicted, p.count) for p in pairs] == [
        ("a", "c", 4), ("c", "a", 2), ("b", "c", 1), ("a", "b", 1),
    ]  # fmt: skip
    assert pairs[0].fraction == pytest.approx(0.4)


def test_phases_follow_the_learning_rates() -> None:
    rows = [
        build_row(0, val__loss=1.0),
        build_row(1, lr__head=0.1, lr__layer4=0.0, lr__stem=0.0),
        build_row(2, lr__head=0.1, lr__layer4=0.0, lr__stem=0.0),
        build_row(3, lr__head=0.1, lr__layer4=0.01, lr__stem=0.0),
        build_row(4, lr__head=0.1, lr__layer4=0.01, lr__stem=0.001),
    ]
    phases = find_phases(rows)
    assert [(p.first_epoch, p.last_epoch, p.describe(3)) for p in phases] == [
        (1, 2, "head only"), (3, 3, "head to layer4"), (4, 4, "all layers"),
    ]  # fmt: skip
    assert [phase.name_briefly(3) for phase in phases] == ["head", "to layer4", "all layers"]
    assert find_phases([build_row(1, val__loss=1.0)]) == ()


def test_curves_have_the_probe_as_baseline_and_mark_the_best_epoch() -> None:
    rows = [
        build_row(0, val__loss=0.9, val__accuracy=0.6),
        build_row(1, train__loss=2.0, train_eval__loss=0.7, val__loss=0.8, val__accuracy=0.7),
        build_row(2, train__loss=1.5, train_eval__loss=0.4, val__loss=0.85, val__accuracy=0.65),
    ]
    section = build_curves(build_facts(rows=rows, config={"checkpoint.monitor": "loss"}))
    assert section is not None
    loss = section.charts[0]
    assert loss.mark == 1
    lines = {line.label: line for line in loss.series}
    assert lines["linear probe, validation"].values == (0.9, 0.9)
    assert lines["training"].values == (0.7, 0.4)
    assert lines["training loss, augmented"].is_faint
    assert section.columns[1:4] == (
        "training loss, augmented",
        "training log loss",
        "validation log loss",
    )
    assert section.note == ""
    half = build_curves(build_facts(rows=rows, config={"trainer.precision": "bf16-mixed"}))
    assert half is not None
    assert half.note.startswith("Epochs are measured in bf16-mixed, as they train, and the kept")
    columns = [name for name in rows[1] if not name.startswith("train_eval")]
    old_rows = [{name: row[name] for name in columns if name in row} for row in rows]
    old = build_curves(build_facts(rows=old_rows))
    assert old is not None
    assert "cannot be compared" in old.note


def test_curves_skip_values_that_cannot_be_drawn() -> None:
    rows = [build_row(1, train__loss=float("nan"), val__loss=0.5), build_row(2, val__loss=0.4)]
    section = build_curves(build_facts(rows=rows))
    assert section is not None
    data = section.charts[0].to_json()
    assert {line["label"] for line in data["series"]} >= {"validation"}
    assert render_report(build_facts(rows=rows), version="1")  # JSON without NaN


def test_metrics_show_both_sides_of_imbalance() -> None:
    facts = build_facts(class_counts={"train": [80, 10, 10]})
    prior = [0.8, 0.1, 0.1]
    priors = {"train": prior, "model": prior, "target": [1 / 3] * 3}
    section = build_metrics(replace(facts, card={**facts.card, "priors": priors}))
    assert section is not None
    assert section.sides is not None
    assert section.sides.columns == ("Class prior of the network", "Balanced classes")
    assert section.sides.shipped == 1
    rows = dict(section.sides.rows)
    # the network's own prior favours the common class
    common, rare = rows["Recall of the commonest third"], rows["Recall of the rarest third"]
    assert float(common[0].rstrip("%")) > float(common[1].rstrip("%"))
    assert float(rare[0].rstrip("%")) < float(rare[1].rstrip("%"))
    balanced = build_metrics(facts)
    assert balanced is not None
    assert balanced.sides is None


def test_calibration_has_diagrams_before_and_after() -> None:
    section = build_calibration(build_facts())
    assert section is not None
    assert [diagram.title for diagram in section.diagrams] == [
        "Without temperature", "With temperature",
    ]  # fmt: skip
    facts = build_facts()
    single = build_calibration(replace(facts, card={**facts.card, "temperature": 1.0}))
    assert single is not None
    assert len(single.diagrams) == 1


def test_classes_of_several_labels_have_thresholds_and_no_matrix() -> None:
    target = np.eye(3, dtype=np.float32)
    stats = {"support": 1, "threshold": 0.25, "average_precision": 1.0, "recall": None}
    evaluations = {"val": {"num_images": 3, "per_label": {"dog": stats}}}
    facts = build_facts(
        card={"thresholds": [0.25], "facts": {"metrics": {"val": {}}, "evaluations": evaluations}},
        predictions={"val": build_predictions(target, np.full((3, 3), 0.5))},
    )
    assert build_confusion(facts) is None
    section = build_classes(facts)
    assert section is not None
    assert section.noun == "label"
    assert section.tables[0].columns == ("Images", "Threshold", "Average precision")
    assert section.tables[0].rows[0][1][1].text == "0.250"
    page = render_report(facts, version="1")
    assert "those of the model" not in page
    pooled = {**evaluations["val"], "metrics": {}, "thresholds_chosen_on": "other_folds"}
    # the thresholds of the model stand beside F1 at those of other folds
    folds = replace(facts, card={"thresholds": [0.25]}, folds={"out_of_fold": pooled, "folds": []})
    page = render_report(replace(folds, predictions={}), version="1")
    assert "The thresholds listed are those of the model, chosen on all held-out images." in page


@pytest.mark.parametrize(
    ("interpolation", "rows", "expected"),
    [
        ({"fraction": 0.0}, [(0, 0.5), (1, 0.6)], "Fine-tuning for 1 epoch did not improve on it."),
        ({"fraction": 0.75}, [(0, 0.5), (1, 0.6)], "at 0.75 of the way"),
        ({"fraction": None}, [(0, 0.5), (1, 0.4), (2, 0.6)], "the weights of epoch 1 of 2"),
        (None, [(0, 0.3), (1, 0.4)], "the linear probe"),
        (None, [], "the weights that its run chose"),
        ({"fraction": 0.0}, [], "the linear probe. Fine-tuning did not improve on it."),
        ({"fraction": 0.5}, [], "from the linear probe to the last epoch"),
        ({"fraction": 1.0}, [], "the weights of the last epoch"),
    ],
)
def test_kept_weights_are_named(
    interpolation: dict[str, float] | None, rows: list[tuple[int, float]], expected: str
) -> None:
    facts = build_facts(
        card={"facts": {"interpolation": interpolation}},
        rows=[build_row(epoch, val__loss=loss) for epoch, loss in rows],
        config={"checkpoint.monitor": "loss"},
    )
    assert expected in describe_kept_weights(facts)


def test_probe_that_is_kept_is_calibrated_in_a_sentence_of_its_own() -> None:
    facts = build_facts(
        card={"facts": {"interpolation": {"fraction": 0.0}}, "temperature": 2.0},
        rows=[build_row(epoch, val__loss=0.5) for epoch in range(4)],
    )
    assert describe_kept_weights(facts) == (
        "The bundle holds the linear probe, with its probabilities calibrated with temperature 2. "
        "Fine-tuning for 3 epochs did not improve on it."
    )


@pytest.mark.parametrize("position", [0.0, 1.0])
def test_health_of_a_kept_probe_is_shown_once(position: float) -> None:
    layer = {"name": "act1", "kind": "relu", "units": 4, "dead": 0.25, "mean_abs_correlation": 0.1}
    facts = build_facts(
        card={"facts": {"interpolation": {"fraction": position}}},
        rows=[build_row(epoch, val__loss=0.5) for epoch in range(2)],
        network={
            "num_images": 8,
            "before": {"layers": [layer]},
            "after": {"layers": [layer]},
            "weights": [{"name": "fc", "group": "head", "relative_change": 0.04}],
            "gradients": [{"name": "fc", "group": "head", "relative_norm": 0.01}],
        },
    )
    page = render_report(facts, version="1")
    assert ("Dead before" in page) is (position == 1)
    assert ("Relative weight change" in page) is (position == 1)
    assert ("The model is the linear probe: its layers are those" in page) is (position == 0)
    assert page.count(">25.0%<") == (1 if position == 0 else 2)


def test_difference_that_is_not_zero_is_not_written_as_zero() -> None:
    assert format_difference(-0.0003, "loss") == "\u22120.0003"
    assert format_difference(0.00004, "accuracy") == "+0.004"
    assert format_difference(-0.158, "loss") == "\u22120.158"
    assert format_difference(0.0, "loss") == format_difference(1e-12, "loss") == "0.000"


def test_losses_that_are_not_finite_are_not_the_best_and_are_named() -> None:
    losses = [math.nan, 0.4, math.inf, 0.6]
    rows = [build_row(epoch, val__loss=loss) for epoch, loss in enumerate(losses)]
    facts = build_facts(rows=rows, config={"checkpoint.monitor": "loss"})
    assert find_best_epoch(rows, "loss") == 1
    assert find_best_epoch(rows[:1], "loss") is None
    curves = build_curves(facts)
    assert curves is not None
    assert curves.charts[0].mark == 1
    shown = [row[1] for row in curves.table]
    assert shown == ["not finite", "0.400", "not finite", "0.600"]


def test_names_of_metrics_keep_their_capitals_within_sentences() -> None:
    rows = [
        build_row(1, val__loss=0.5, val__macro_f1=0.5, val__top5_accuracy=0.9, train_eval__loss=1.0)
    ]
    facts = build_facts(rows=rows, config={"trainer.monitor": "macro_f1"})
    curves = build_curves(facts)
    assert curves is not None
    assert "validation macro F1" in curves.columns
    overlay = build_overlay([facts, replace(facts, name="other")])
    assert overlay is not None
    assert "Validation macro F1" in [chart.title for chart in overlay.charts]
    assert format_metric_in_sentence("top5_accuracy") == "top-5 accuracy"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([20, 20, 20], "Each class has the same number of training images."),
        ([40, 20, 20], "2 times as many"),
    ],
)
def test_equal_classes_are_not_called_one_time_as_many(counts: list[int], expected: str) -> None:
    page = render_report(build_facts(class_counts={"train": counts}), version="1")
    assert expected in page
    assert "has 1 times" not in page


def test_page_allows_no_script_but_its_own() -> None:
    page = render_report(build_facts(rows=[build_row(1, val__loss=1.0)]), version="1")
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[0]
    directives = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    assert {directives[name] for name in ("default-src", "base-uri", "form-action")} == {"'none'"}
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert directives["script-src"] == f"'sha256-{digest}'"


def test_page_escapes_names_of_classes_files_and_runs() -> None:
    facts = build_facts(
        name=EVIL,
        classes=(EVIL, "b", "c"),
        rejected=[(EVIL, EVIL)],
        audit={"duplicates": [], "label_errors": None},
        rows=[build_row(1, val__loss=1.0, **{f"lr__{EVIL}": 0.1})],
        findings=[{"severity": "warning", "title": EVIL, "sentence": EVIL}],
    )
    page = render_report(facts, version="1")
    assert "<script>alert" not in page
    assert page.count("</script>") == page.count("<script")


def test_page_says_how_far_contradicted_labels_can_be_trusted() -> None:
    error = {
        "path": "a.png", "label": "x", "predicted_label": "y", "predicted_probability": 0.9,
    }  # fmt: skip
    audit = {
        "duplicates": [],
        "label_errors": [error] * 37,
        "label_check": {"num_images": 397, "accuracy": 0.632},
    }
    section = build_data(build_facts(audit=audit))
    assert section is not None
    (line,) = (line for line in section.audit if line.kind == "Labels to check")
    assert line.count == 37
    assert line.remark == (
        "contradicted by heads that predict 63.2% of 397 images as labelled; they may be right: "
        "look at the images"
    )
    older = build_data(build_facts(audit={**audit, "label_check": None}))
    assert older is not None
    assert "contradicted by the audit" in {one.remark.partition(";")[0] for one in older.audit}


def test_page_of_a_run_without_anything_has_a_summary() -> None:
    page = render_report(RunFacts(name="empty", path="empty", classes=("a", "b")), version="1")
    assert "not been evaluated" in page
    assert "The run is not finished" in page
    assert 'id="curves"' not in page
