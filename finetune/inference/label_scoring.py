"""Predicted labels of a multi-label model, and its evaluation as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.bundle.model_card import ModelCard
from finetune.types import Prediction

if TYPE_CHECKING:
    from finetune.evaluation.multi_label.label_metrics import MultiLabelEvaluation


def predict_labels(path: str, probabilities: Sequence[float], card: ModelCard) -> Prediction:
    """Return the labels whose probabilities reach their thresholds, most probable first.

    Args:
        path: Path of the image.
        probabilities: Probability of each label, shape (K,).
        card: Card of the model, with thresholds.
    """
    assert card.thresholds is not None, "a multi-label model"
    triples = zip(card.classes, probabilities, card.thresholds, strict=True)
    reached = sorted((-p, name) for name, p, threshold in triples if p >= threshold)
    return Prediction(
        path,
        tuple(name for _, name in reached),
        tuple(-p for p, _ in reached),
        all_probabilities=tuple(probabilities),
    )


def label_details_to_json(evaluation: "MultiLabelEvaluation") -> dict[str, Any]:
    """Return the evaluation of a multi-label model without its metrics as JSON values."""
    stats = evaluation.per_label
    return {
        "num_images": evaluation.num_images,
        "num_labels_averaged": {
            "mean_average_precision": sum(one.average_precision is not None for one in stats),
            "macro_f1": sum(one.f1 is not None for one in stats),
        },
        "per_label": {
            one.name: {
                "train_images": one.train_images,
                "support": one.support,
                "num_predicted": one.num_predicted,
                "threshold": one.threshold,
                "average_precision": one.average_precision,
                "precision": one.precision,
                "recall": one.recall,
                "f1": one.f1,
            }
            for one in stats
        },
    }
