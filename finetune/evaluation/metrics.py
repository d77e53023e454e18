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

from finetune.evaluation.significance import compute_wilson_interval
from finetune.types import ClassStats, Evaluation

# N images, K classes


def evaluate_probabilities(
    probabilities_NK: Tensor,
    target_N: Tensor,
    *,
    classes: Sequence[str],
    train_counts: Sequence[int] | None = None,
) -> Evaluation:
    """Return all metrics of a set of images.

    ``balanced_accuracy`` is the mean recall over the classes that are present. ``macro_f1`` is the
    mean F1 over the classes that are present or predicted. Both are scikit-learn's definitions.
    ``rarest_third_recall`` is the mean recall over those of ``select_rarest_third`` that are present, and
    is left out where none of them is. Intervals are Wilson's.

    Args:
        probabilities_NK: Class probabilities, shape (N, K), rows sum to 1.
        target_N: True class indices in [0, K), int64, shape (N,).
        classes: Class names, K of them.
        train_counts: Training images of each class, shape (K,); without, the rarest are those with
            the fewest images here.

    Raises:
        ValueError: There is no image.
    """
    num_classes = len(classes)
    trained: Sequence[int | None] = train_counts or [None] * num_classes
    if len(target_N) == 0:
        raise ValueError("metrics need at least one image")
    predicted_N = probabilities_NK.argmax(dim=1)
    stats_K4 = multiclass_stat_scores(predicted_N, target_N, num_classes=num_classes, average=None)
    per_class = tuple(
        _build_class_stats(name, count, *map(int, row))
        for name, count, row in zip(classes, trained, stats_K4, strict=True)
    )
    confusion = multiclass_confusion_matrix(predicted_N, target_N, num_classes=num_classes)
    is_right_N = predicted_N == target_N
    rarest = select_rarest_third(per_class)
    of_rarest = [c.recall for c in rarest if c.recall is not None]
    metrics = {
        "loss": log_loss(probabilities_NK, target_N),
        "accuracy": float(is_right_N.double().mean()),
        "balanced_accuracy": _average_defined([c.recall for c in per_class]),
        "macro_f1": _average_defined([c.f1 for c in per_class]),
        **({"rarest_third_recall": _average_defined(of_rarest)} if of_rarest else {}),
    }
    if num_classes > 5:
        metrics["top5_accuracy"] = float(
            multiclass_accuracy(
                probabilities_NK, target_N, num_classes=num_classes, average="micro", top_k=5
            )
        )
    return Evaluation(
        num_images=len(target_N),
        metrics=metrics,
        per_class=per_class,
        confusion_matrix=tuple(tuple(int(count) for count in row) for row in confusion),
        accuracy_interval=compute_wilson_interval(int(is_right_N.sum()), len(target_N)),
        rarest_classes=tuple(c.name for c in rarest),
        undefined_metrics=() if of_rarest else ("rarest_third_recall",),
    )


def select_rarest_third(per_class: Sequence[ClassStats]) -> list[ClassStats]:
    """Return the third of the classes with the fewest training images, rounded down but not to 0.

    Where training images are not known, those with the fewest images here, of those with any. Of
    classes as rare as each other the first in class order come first.
    """
    if all(stats.train_images is not None for stats in per_class):
        ordered = sorted(per_class, key=lambda stats: stats.train_images or 0)
    else:
        ordered = sorted((c for c in per_class if c.support), key=lambda stats: stats.support)
    return ordered[: max(1, len(ordered) // 3)]


def log_loss(probabilities_NK: Tensor, target_N: Tensor) -> float:
    """Return the mean log loss; what is impossible counts as the smallest float32.

    Args:
        probabilities_NK: Class probabilities, shape (N, K), rows sum to 1.
        target_N: True class indices in [0, K), int64, shape (N,).
    """
    log_likely = probabilities_NK.double().clamp_min(torch.finfo(torch.float32).tiny).log()
    return float(nll_loss(log_likely, target_N))


def calibration_error(probabilities_NK: Tensor, target_N: Tensor) -> float:
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


def _build_class_stats(
    name: str, train_images: int | None, tp: int, fp: int, tn: int, fn: int, support: int
) -> ClassStats:
    del tn
    predicted = tp + fp
    return ClassStats(
        name=name,
        support=support,
        num_predicted=predicted,
        precision=tp / predicted if predicted else None,
        recall=tp / support if support else None,
        f1=2 * tp / (2 * tp + fp + fn) if support or predicted else None,
        recall_interval=compute_wilson_interval(tp, support) if support else None,
        train_images=train_images,
    )


def _average_defined(values: Sequence[float | None]) -> float:
    """Return the mean of what is defined; one image at least makes one class defined."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined)
