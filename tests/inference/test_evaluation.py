"""What a model is worth on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sklearn import metrics as reference

from finetune.bundle import load_model
from finetune.inference.evaluation import evaluate_files
from finetune.inference.predictor import Predictor

if TYPE_CHECKING:
    from finetune.commands.fit import FitResult


def test_numbers_are_scikit_learns_on_the_predictions(trained: FitResult, insects: Path) -> None:
    predictor = Predictor(load_model(trained.run_dir), device="cpu")
    classes = predictor.card.classes
    files = sorted(insects.rglob("*.png"))
    true = [classes.index(file.parent.name) for file in files]
    counts: list[int] = []

    found = evaluate_files(predictor, files, true, on_batch=counts.append)

    probabilities = predictor.probabilities(files).numpy()
    predicted = probabilities.argmax(1)
    assert found.num_images == sum(counts) == 38
    assert found.metrics == pytest.approx(
        {
            "loss": reference.log_loss(true, probabilities),
            "accuracy": reference.accuracy_score(true, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(true, predicted),
            "macro_f1": reference.f1_score(true, predicted, average="macro"),
        },
        abs=1e-6,
    )
    confusion = reference.confusion_matrix(true, predicted).tolist()
    assert [list(row) for row in found.confusion] == confusion
