"""Metrics once, from the complete predictions: the same numbers whatever computed them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import nll_loss
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_stat_scores,
)

from finetune.types import ClassStats, Evaluation

# N images, K classes


def evaluate_probabilities(
    probabilities_NK: Tensor,  # noqa: N803 - shape suffix
    target_N: Tensor,  # noqa: N803
    *,
    classes: Sequence[str],
) -> Evaluation:
    """Return all metrics of a set of images.

    ``balanced_accuracy`` is the mean recall over the classes that are present. ``macro_f1`` is the
    mean F1 over the classes that are present or predicted. Both are scikit-learn's definitions.

    Args:
        probabilities_NK: Class probabilities, shape (N, K), rows sum to 1.
        target_N: True class indices in [0, K), int64, shape (N,).
        classes: Class names, K of them.

    Raises:
        ValueError: There is no image.
    """
    num_classes = len(classes)
    if len(target_N) == 0:
        raise ValueError("metrics need at least one image")
    predicted_N = probabilities_NK.argmax(dim=1)  # noqa: N806
    stats_K4 = multiclass_stat_scores(  # noqa: N806
        predicted_N, target_N, num_classes=num_classes, average=None
    )
    per_class = tuple(
        _class_stats(name, *map(int, row)) for name, row in zip(classes, stats_K4, strict=True)
    )
    confusion = multiclass_confusion_matrix(predicted_N, target_N, num_classes=num_classes)
    metrics = {
        "loss": log_loss(probabilities_NK, target_N),
        "accuracy": float((predicted_N == target_N).double().mean()),
        "balanced_accuracy": _mean([c.recall for c in per_class]),
        "macro_f1": _mean([c.f1 for c in per_class]),
    }
    if num_classes > 5:
        metrics["top5_accuracy"] = float(
            multiclass_accuracy(
                probabilities_NK, target_N, num_classes=num_classes, average="micro", top_k=5
            )
        )
    rows = tuple(tuple(int(count) for count in row) for row in confusion)
    return Evaluation(len(target_N), metrics, per_class, rows)


def log_loss(probabilities_NK: Tensor, target_N: Tensor) -> float:  # noqa: N803
    """Return the mean log loss; what is impossible counts as the smallest float32.

    Args:
        probabilities_NK: Class probabilities, shape (N, K), rows sum to 1.
        target_N: True class indices in [0, K), int64, shape (N,).
    """
    log_likely = probabilities_NK.double().clamp_min(torch.finfo(torch.float32).tiny).log()
    return float(nll_loss(log_likely, target_N))


def calibration_error(probabilities_NK: Tensor, target_N: Tensor) -> float:  # noqa: N803
    """Return the expected calibration error of the classes that are given, in [0, 1].

    The mean distance between how sure a model is and how often it is right, over 15 bins of equal
    width, weighted by their images (Guo et al. 2017, eq. 3, https://arxiv.org/abs/1706.04599).

    Args:
        probabilities_NK: Class probabilities, shape (N, K), rows sum to 1.
        target_N: True class indices in [0, K), int64, shape (N,).
    """
    found = multiclass_calibration_error(
        probabilities_NK, target_N, num_classes=probabilities_NK.shape[1], n_bins=15, norm="l1"
    )
    return float(found)


def _class_stats(name: str, tp: int, fp: int, tn: int, fn: int, support: int) -> ClassStats:
    del tn
    predicted = tp + fp
    return ClassStats(
        name=name,
        support=support,
        predicted=predicted,
        precision=tp / predicted if predicted else None,
        recall=tp / support if support else None,
        f1=2 * tp / (2 * tp + fp + fn) if support or predicted else None,
    )


def _mean(values: Sequence[float | None]) -> float:
    """Return the mean of what is defined; one image at least makes one class defined."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined)
