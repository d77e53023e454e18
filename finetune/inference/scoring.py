"""Evaluation of a model on labelled images, and its JSON."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.metrics import evaluate_probabilities
from finetune.evaluation.multi_label.label_metrics import MultiLabelEvaluation, evaluate_labels
from finetune.inference.label_scoring import label_details_to_json
from finetune.inference.predictor import Predictor
from finetune.types import Evaluation

AnyEvaluation = Evaluation | MultiLabelEvaluation


def evaluate_targets(predictor: Predictor, logits: Tensor, targets: NDArray[Any]) -> AnyEvaluation:
    """Return the evaluation of a model's logits for images of one class, or of any labels.

    Args:
        predictor: Predictor that computed the logits.
        logits: Uncalibrated logits, shape (N, V, K), with V views of each image.
        targets: Class indices in the model's order, shape (N,), or 1 for each label of multi-label
            images, shape (N, K).
    """
    if targets.ndim == 1:
        return evaluate_logits(predictor, logits, targets.tolist())
    return evaluate_labels(
        predictor.compute_probabilities(logits),
        torch.from_numpy(targets),
        classes=predictor.card.classes,
        thresholds=predictor.card.thresholds,
        train_counts=predictor.card.train_counts,
    )


def evaluate_logits(predictor: Predictor, logits: Tensor, labels: Sequence[int]) -> Evaluation:
    """Return the evaluation of a model's logits for labelled images.

    Args:
        predictor: Predictor that computed the logits.
        logits: Uncalibrated logits, shape (N, V, K), with V views of each image.
        labels: Class indices in the model's order, shape (N,).
    """
    return evaluate_probabilities(
        predictor.compute_probabilities(logits),
        torch.tensor(list(labels)),
        classes=predictor.card.classes,
        train_counts=predictor.card.train_counts,
    )


def metrics_to_json(evaluation: AnyEvaluation) -> dict[str, float | None]:
    """Return all metrics by name; None for undefined ones."""
    return {**evaluation.metrics, **dict.fromkeys(evaluation.undefined_metrics)}


def details_to_json(evaluation: AnyEvaluation) -> dict[str, Any]:
    """Return the evaluation without its metrics and confusion matrix as JSON values."""
    if isinstance(evaluation, MultiLabelEvaluation):
        return label_details_to_json(evaluation)
    stats = evaluation.per_class
    by_name = {entry.name: entry for entry in stats}
    has_train_images = all(entry.train_images is not None for entry in stats)
    return {
        "num_images": evaluation.num_images,
        "accuracy_interval": list(evaluation.accuracy_interval),
        "rarest_third": {
            "classes": list(evaluation.rarest_classes),
            "ranked_by": "train_images" if has_train_images else "eval_images",
        },
        "num_classes_averaged": {
            "balanced_accuracy": sum(entry.recall is not None for entry in stats),
            "macro_f1": sum(entry.f1 is not None for entry in stats),
            "rarest_third_recall": sum(
                by_name[name].recall is not None for name in evaluation.rarest_classes
            ),
        },
        "per_class": {
            entry.name: {
                "train_images": entry.train_images,
                "support": entry.support,
                "num_predicted": entry.num_predicted,
                "precision": entry.precision,
                "recall": entry.recall,
                "recall_interval": _to_list(entry.recall_interval),
                "f1": entry.f1,
            }
            for entry in stats
        },
    }


def _to_list(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
