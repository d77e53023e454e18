"""Classification metrics, computed once from the predictions of all images.

The numbers do not depend on the batch size or the number of ranks.
"""

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

# shape suffixes: N images, K classes


def evaluate_probabilities(
    probabilities_NK: Tensor,
    target_N: Tensor,
    *,
    classes: Sequence[str],
    train_counts: Sequence[int] | None = None,
) -> Evaluation:
    """Compute all metrics of a set of images.

    ``balanced_accuracy`` is the mean recall over the classes present. ``macro_f1`` is the mean F1
    over the classes present or predicted. Both are scikit-learn's definitions.
    ``rarest_third_recall`` is the mean recall over the classes of ``select_rarest_third`` that are
    present; it is undefined if none of them is, and omitted if no class is rarer. Intervals are
    Wilson score intervals.

    Args:
        probabilities_NK: Class probabilities, shape (N, K), rows sum to 1.
        target_N: True class indices in [0, K), int64, shape (N,).
        classes: Class names, K of them.
        train_counts: Number of training images per class, shape (K,); None ranks the classes by
            their number of evaluated images instead.

    Raises:
        ValueError: The set of images is empty.
    """
    num_classes = len(classes)
    num_train_images: Sequence[int | None] = train_counts or [None] * num_classes
    if len(target_N) == 0:
        raise ValueError("metrics need at least one image")
    predicted_N = probabilities_NK.argmax(dim=1)
    stats_K4 = multiclass_stat_scores(predicted_N, target_N, num_classes=num_classes, average=None)
    per_class = tuple(
        _build_class_stats(name, count, *map(int, row))
        for name, count, row in zip(classes, num_train_images, stats_K4, strict=True)
    )
    confusion = multiclass_confusion_matrix(predicted_N, target_N, num_classes=num_classes)
    is_correct_N = predicted_N == target_N
    rarest = select_rarest_third(per_class)
    rarest_recalls = [c.recall for c in rarest if c.recall is not None]
    metrics = {
        "loss": log_loss(probabilities_NK, target_N),
        "accuracy": float(is_correct_N.double().mean()),
        "balanced_accuracy": _average_defined([c.recall for c in per_class]),
        "macro_f1": _average_defined([c.f1 for c in per_class]),
        **({"rarest_third_recall": _average_defined(rarest_recalls)} if rarest_recalls else {}),
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
        accuracy_interval=compute_wilson_interval(int(is_correct_N.sum()), len(target_N)),
        rarest_classes=tuple(c.name for c in rarest),
        undefined_metrics=("rarest_third_recall",) if rarest and not rarest_recalls else (),
    )


def select_rarest_third(per_class: Sequence[ClassStats]) -> list[ClassStats]:
    """Return the third of the classes with the fewest training images, at least one class.

    The number of classes is rounded down. If the training images are unknown, the classes present
    are ranked by their number of evaluated images.

    Classes with equal counts are taken together or not at all, so that the selection does not
    depend on their order: a tie at the limit is left out if rarer classes remain. No class is
    selected if the counts differ by one image at most, which is how splits and folds round.
    """
    if all(stats.train_images is not None for stats in per_class):
        counted = [(stats.train_images or 0, stats) for stats in per_class]
    else:
        counted = [(stats.support, stats) for stats in per_class if stats.support]
    counted.sort(key=lambda pair: pair[0])
    counts = [count for count, _ in counted]
    if not counts or counts[-1] - counts[0] <= 1:
        return []
    num_third = max(1, len(counts) // 3)
    limit = counts[num_third - 1]
    if counts[num_third] > limit or limit == counts[0]:
        return [stats for count, stats in counted if count <= limit]
    return [stats for count, stats in counted if count < limit]


def log_loss(probabilities_NK: Tensor, target_N: Tensor) -> float:
    """Compute the mean log loss, with probabilities clamped to the smallest normal float32.

    Args:
        probabilities_NK: Class probabilities, shape (N, K), rows sum to 1.
        target_N: True class indices in [0, K), int64, shape (N,).
    """
    log_probabilities_NK = (
        probabilities_NK.double().clamp_min(torch.finfo(torch.float32).tiny).log()
    )
    return float(nll_loss(log_probabilities_NK, target_N))


def calibration_error(probabilities_NK: Tensor, target_N: Tensor) -> float:
    """Compute the expected calibration error of the predicted classes, in [0, 1].

    Mean absolute difference between confidence and accuracy over 15 bins of equal width, weighted
    by their number of images (Guo et al. 2017, eq. 3, https://arxiv.org/abs/1706.04599).

    Args:
        probabilities_NK: Class probabilities, shape (N, K), rows sum to 1.
        target_N: True class indices in [0, K), int64, shape (N,).
    """
    error = multiclass_calibration_error(
        probabilities_NK, target_N, num_classes=probabilities_NK.shape[1], n_bins=15, norm="l1"
    )
    return float(error)


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
    """Return the mean of the values that are not None; with one image, one class is defined."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined)
