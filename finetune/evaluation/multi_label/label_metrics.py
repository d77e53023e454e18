"""Metrics of multi-label images, computed once from the predictions of all images.

They are scikit-learn's definitions; a label without an image that has it is left out of averages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# N images, K labels

DEFAULT_THRESHOLD = 0.5

MEAN_AVERAGE_PRECISION = "mean_average_precision"

METRICS_OF_LABELS = (
    MEAN_AVERAGE_PRECISION,
    "micro_average_precision",
    "macro_f1",
    "micro_f1",
)
"""Metrics that images without any label do not define, or F1 only if one is predicted."""


@dataclass(frozen=True, slots=True)
class LabelStats:
    """Statistics of one label in an evaluation; None for undefined ones.

    Attributes:
        name: Label name.
        support: Number of images with the label.
        num_predicted: Number of images whose probability reaches the threshold that applies to
            them: ``threshold``, or that of their fold.
        threshold: Probability from which the label is predicted; after a cross-validation, that of
            the model.
        average_precision: Area under the steps of precision over recall; None without images.
        precision: Correct fraction of ``num_predicted``; None if the label was never predicted.
        recall: Correct fraction of ``support``; None without images.
        f1: Harmonic mean of both; None if the label is neither present nor predicted.
        train_images: Number of training images with the label; None if unknown.
    """

    name: str
    support: int
    num_predicted: int
    threshold: float
    average_precision: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    train_images: int | None = None


@dataclass(frozen=True, slots=True)
class MultiLabelEvaluation:
    """Result of evaluating a model on multi-label images.

    Attributes:
        num_images: Number of evaluated images, each counted once.
        metrics: Metric name to value: loss, mean_average_precision, micro_average_precision,
            macro_f1, micro_f1 and subset_accuracy.
        per_label: Statistics of each label, in class order.
        undefined_metrics: Names of the metrics that these images do not define; not in ``metrics``.
    """

    num_images: int
    metrics: Mapping[str, float]
    per_label: tuple[LabelStats, ...]
    undefined_metrics: tuple[str, ...] = ()


def evaluate_labels(
    probabilities_NK: Tensor,
    target_NK: Tensor,
    *,
    classes: Sequence[str],
    thresholds: Sequence[float] | None = None,
    train_counts: Sequence[int] | None = None,
    image_thresholds_NK: NDArray[np.float64] | None = None,
) -> MultiLabelEvaluation:
    """Compute all metrics of a set of multi-label images.

    ``loss`` is the mean log loss over images and labels. ``mean_average_precision`` is the mean
    over the labels with images, ``micro_average_precision`` that of all pairs of image and label
    together. ``macro_f1`` is the mean F1 over the labels present or predicted. ``subset_accuracy``
    is the fraction of images all of whose labels are right, and that have no other.

    Args:
        probabilities_NK: Probability of each label, float64, shape (N, K).
        target_NK: 1 for each label of each image, else 0, shape (N, K).
        classes: Label names, K of them.
        thresholds: Probability from which each label is predicted, shape (K,); None for 0.5.
        train_counts: Training images with each label, shape (K,); None if unknown.
        image_thresholds_NK: Thresholds of each image, which take the place of ``thresholds`` in all
            but the statistics' own ``threshold``, shape (N, K); None for the same of all images.

    Raises:
        ValueError: The set of images is empty.
    """
    if len(target_NK) == 0:
        raise ValueError("metrics need at least one image")
    p_NK = probabilities_NK.double().numpy()
    is_true_NK = target_NK.numpy() > 0.5
    limits_K = np.asarray(thresholds or [DEFAULT_THRESHOLD] * len(classes))
    is_predicted_NK = p_NK >= (limits_K if image_thresholds_NK is None else image_thresholds_NK)
    counts: Sequence[int | None] = train_counts or [None] * len(classes)
    per_label = tuple(
        _build_label_stats(
            name,
            p_NK[:, column],
            is_true_NK[:, column],
            is_predicted_NK[:, column],
            threshold=float(limits_K[column]),
            train_images=counts[column],
        )
        for column, name in enumerate(classes)
    )
    correct, predicted, present = (
        int(flags.sum()) for flags in (is_true_NK & is_predicted_NK, is_predicted_NK, is_true_NK)
    )
    values: dict[str, float | None] = {
        "loss": label_log_loss(p_NK, is_true_NK),
        MEAN_AVERAGE_PRECISION: _average_defined([s.average_precision for s in per_label]),
        "micro_average_precision": compute_average_precision(p_NK.ravel(), is_true_NK.ravel()),
        "macro_f1": _average_defined([s.f1 for s in per_label]),
        "micro_f1": 2 * correct / (predicted + present) if predicted + present else None,
        "subset_accuracy": float((is_true_NK == is_predicted_NK).all(axis=1).mean()),
    }
    return MultiLabelEvaluation(
        num_images=len(target_NK),
        metrics={name: value for name, value in values.items() if value is not None},
        per_label=per_label,
        undefined_metrics=tuple(name for name, value in values.items() if value is None),
    )


def compute_average_precision(
    scores_N: NDArray[np.float64], is_true_N: NDArray[np.bool_]
) -> float | None:
    """Return the mean, over the images with the label, of the precision at their scores.

    The precision at a score counts all images with at least this score, so that the order of equal
    scores does not matter; scikit-learn's ``average_precision_score``. None without such images.

    Args:
        scores_N: Score of each image, higher for the label, shape (N,).
        is_true_N: Whether each image has the label, shape (N,).
    """
    if not is_true_N.any():
        return None
    order = np.argsort(-scores_N, kind="stable")
    sorted_scores, is_true = scores_N[order], is_true_N[order]
    precision = np.cumsum(is_true) / np.arange(1, len(order) + 1)
    # of equal scores the last one has the precision of them all
    ends = np.append(np.flatnonzero(np.diff(sorted_scores)), len(order) - 1)
    end_of = ends[np.searchsorted(ends, np.arange(len(order)))]
    return float(precision[end_of][is_true].mean())


def label_log_loss(p_NK: NDArray[np.float64], is_true_NK: NDArray[np.bool_]) -> float:
    """Return the mean log loss over images and labels, with probabilities clipped to 1e-15."""
    p_of_truth = np.where(is_true_NK, p_NK, 1 - p_NK)
    return float(-np.log(p_of_truth.clip(1e-15, 1)).mean())


def _build_label_stats(
    name: str,
    p_N: NDArray[np.float64],
    is_true_N: NDArray[np.bool_],
    is_predicted_N: NDArray[np.bool_],
    *,
    threshold: float,
    train_images: int | None,
) -> LabelStats:
    support, predicted = int(is_true_N.sum()), int(is_predicted_N.sum())
    correct = int((is_true_N & is_predicted_N).sum())
    return LabelStats(
        name=name,
        support=support,
        num_predicted=predicted,
        threshold=threshold,
        average_precision=compute_average_precision(p_N, is_true_N),
        precision=correct / predicted if predicted else None,
        recall=correct / support if support else None,
        f1=2 * correct / (predicted + support) if predicted + support else None,
        train_images=train_images,
    )


def _average_defined(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None without any."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
