"""Predictions of a multi-label model as JSON and CSV."""

from collections.abc import Sequence
from typing import Any

from finetune.bundle.model_card import ModelCard
from finetune.errors import ConfigError
from finetune.types import Prediction, RejectedFile
from finetune.units import format_csv

_SEPARATOR = "|"


def check_top_k(top_k: int, card: ModelCard) -> None:
    """Check that a number of classes is not set for a model that predicts any number of labels.

    Raises:
        ConfigError: It is.
    """
    if card.is_multi_label and top_k != 1:
        raise ConfigError(
            f"--top-k {top_k} cannot apply to a multi-label model, which predicts each label whose "
            f"probability reaches its threshold. Leave it out: the output has the probability of "
            f"every label."
        )


def label_prediction_to_json(prediction: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    """Return the predicted labels of an image, most probable first, and all probabilities."""
    assert prediction.all_probabilities is not None, "of a multi-label model"
    return {
        "path": prediction.path,
        "labels": [
            {"label": label, "probability": probability}
            for label, probability in zip(prediction.labels, prediction.probabilities, strict=True)
        ],
        "probabilities": dict(zip(classes, prediction.all_probabilities, strict=True)),
    }


def format_label_predictions(
    predictions: Sequence[Prediction], rejected: Sequence[RejectedFile], classes: Sequence[str]
) -> str:
    """Return CSV text: path, labels separated by "|", a probability for each label, and error."""
    header = ["path", "labels", *(f"probability_{name}" for name in classes), "error"]
    rows = []
    for one in predictions:
        values = [f"{value:.6f}" for value in one.all_probabilities or ()]
        rows.append([one.path, _SEPARATOR.join(one.labels), *values, ""])
    rows += [[entry.path, "", *[""] * len(classes), entry.reason] for entry in rejected]
    return format_csv(header, rows)
