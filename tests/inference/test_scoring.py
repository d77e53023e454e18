"""Tests of evaluations of labelled images and their JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sklearn import metrics as reference

from finetune.bundle.bundle import load_model
from finetune.inference.predictor import Predictor
from finetune.inference.scoring import details_to_json, evaluate_logits, metrics_to_json
from tests.conftest import CLASSES

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


def test_evaluate_logits_equals_scikit_learn(trained: FitResult, insects: Path) -> None:
    predictor = Predictor(load_model(trained.run_dir), device="cpu")
    classes = predictor.card.classes
    files = sorted(insects.rglob("*.png"))
    true = [classes.index(file.parent.name) for file in files]
    counts: list[int] = []

    evaluation = evaluate_logits(
        predictor, predictor.predict_logits(files, on_batch=counts.append), true
    )

    probabilities = predictor.predict_proba(files).numpy()
    predicted = probabilities.argmax(1)
    assert evaluation.num_images == sum(counts) == 38
    assert evaluation.metrics == pytest.approx(
        {
            "loss": reference.log_loss(true, probabilities),
            "accuracy": reference.accuracy_score(true, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(true, predicted),
            "macro_f1": reference.f1_score(true, predicted, average="macro"),
            "rarest_third_recall": reference.recall_score(
                true, predicted, labels=[2], average="macro"
            ),
        },
        abs=1e-6,
    )
    confusion = reference.confusion_matrix(true, predicted).tolist()
    assert [list(row) for row in evaluation.confusion_matrix] == confusion


def test_details_to_json_undefined_values_are_null(trained: FitResult, insects: Path) -> None:
    predictor = Predictor(load_model(trained.run_dir), device="cpu")
    files = sorted((insects / CLASSES[1]).iterdir())
    evaluation = evaluate_logits(predictor, predictor.predict_logits(files), [1] * len(files))
    tree = json.loads(json.dumps(details_to_json(evaluation)))
    assert metrics_to_json(evaluation)["rarest_third_recall"] is None
    assert "rarest_third_recall" not in evaluation.metrics
    assert tree["rarest_third"] == {"classes": [CLASSES[2]], "ranked_by": "train_images"}
    predicted = {stats.name for stats in evaluation.per_class if stats.num_predicted}
    for stats in evaluation.per_class:
        assert tree["per_class"][stats.name]["num_predicted"] == stats.num_predicted
    assert tree["num_classes_averaged"] == {
        "balanced_accuracy": 1,
        "macro_f1": len(predicted | {CLASSES[1]}),
        "rarest_third_recall": 0,
    }
    absent = tree["per_class"][CLASSES[2]]
    assert (absent["support"], absent["recall"], absent["recall_interval"]) == (0, None, None)
    recall = evaluation.per_class[1].recall
    assert (
        tree["per_class"][CLASSES[1]]["recall"] == recall == evaluation.metrics["balanced_accuracy"]
    )


def test_details_to_json_without_train_images_ranks_by_evaluated_images(
    trained: FitResult, insects: Path
) -> None:
    predictor = Predictor(load_model(trained.run_dir), device="cpu")
    files = sorted(insects.rglob("*.png"))
    labels = [predictor.card.classes.index(file.parent.name) for file in files]
    evaluation = evaluate_logits(predictor, predictor.predict_logits(files), labels)
    per_class = tuple(replace(stats, train_images=None) for stats in evaluation.per_class)
    tree = details_to_json(replace(evaluation, per_class=per_class))
    assert tree["rarest_third"]["ranked_by"] == "eval_images"
