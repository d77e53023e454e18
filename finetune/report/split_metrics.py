"""Metrics of predictions with 95% intervals, and of predictions for another class prior."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from finetune.report.number_formats import is_loss
from finetune.report.run_facts import SplitPredictions

# shape suffixes: N images, K classes, R resamples

NUM_RESAMPLES = 1_000
MIN_IMAGES_PER_CLASS = 10
"""Mean number of images of a class from which means over classes have an interval.

In simulations of 30 classes, 95% intervals of the macro F1 covered the true value in 83% of the
cases with 3 images of each class, in 91% with 5 and in 93% with 10.
"""

_EQUAL = 1e-9
"""Difference of sums in another order."""

_CLASS_MEANS = ("balanced_accuracy", "macro_f1", "rarest_third_recall")
_SEED = 0
_MAX_CELLS = 4_000_000
"""Size of the largest temporary array."""

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, eq=False)
class SplitMetrics:
    """Metrics of a split.

    Attributes:
        values: Metric by name.
        intervals: 95% interval by name.
        recalls: Recall of each class; nan without images of it, shape (K,).
    """

    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    recalls: NDArray[np.float64]


@lru_cache(maxsize=16)
def measure_split(predictions: SplitPredictions, rarest: tuple[int, ...] = ()) -> SplitMetrics:
    """Return the metrics of predictions with intervals of a bootstrap (Efron 1979).

    Whole groups are resampled, as their images are not independent. Of multi-label images there
    are no metrics here. A metric has no interval where its classes have too few images, or where
    all resamples agree, which tells nothing of other images.

    Args:
        predictions: Predictions of a split.
        rarest: Class indices whose mean recall is ``rarest_third_recall``; empty for none.
    """
    if predictions.target.ndim == 2 or len(predictions.target) == 0:
        return SplitMetrics({}, {}, np.zeros(0))
    table_NK, target_N = predictions.probabilities, predictions.target
    ones_1N = np.ones((1, len(target_N)))
    values, recalls = _compute_metrics(ones_1N, table_NK, target_N, rarest)
    resampled: dict[str, list[NDArray[np.float64]]] = {name: [] for name in values}
    for weights_RN in iterate_resamples(predictions.groups):
        for name, values_R in _compute_metrics(weights_RN, table_NK, target_N, rarest)[0].items():
            resampled[name].append(values_R)
    points = {name: float(one[0]) for name, one in values.items()}
    is_small = len(target_N) < MIN_IMAGES_PER_CLASS * len(np.unique(target_N))
    intervals = {
        name: interval
        for name, parts in resampled.items()
        if not (is_small and name in _CLASS_MEANS)
        and (interval := compute_interval(points[name], np.concatenate(parts), name)) is not None
    }
    return SplitMetrics(points, intervals, recalls[0])


def compute_interval(
    value: float, resampled_R: NDArray[np.float64], metric: str
) -> tuple[float, float] | None:
    """Return the percentiles of resampled values, moved by the bootstrap's estimate of their bias.

    A resample lacks some images of each class, so that means over classes are off in resamples:
    without the correction, intervals of the macro F1 of many classes lie beside its value.

    Args:
        value: Metric of all images.
        resampled_R: Metric of each resample, shape (R,); nan where it is undefined.
        metric: Name of the metric.

    Returns:
        The interval; None where all resamples agree.
    """
    known = resampled_R[np.isfinite(resampled_R)]
    if len(known) == 0 or known.max() - known.min() < _EQUAL:
        return None
    bias = float(known.mean()) - value
    low, high = (float(end) - bias for end in np.percentile(known, (2.5, 97.5)))
    return max(0.0, low), high if is_loss(metric) else min(1.0, high)


def shift_probabilities(
    table_NK: NDArray[np.float64], shift_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return probabilities after a logit adjustment, shape (N, K)."""
    return normalize_logits(np.log(np.maximum(table_NK, _TINY)) + shift_K)


def normalize_logits(logits_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of logits, shape (N, K)."""
    exponentials = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def count_confusions(
    target_N: NDArray[Any], predicted_N: NDArray[Any], num_classes: int
) -> NDArray[np.int64]:
    """Return the confusion matrix, shape (K, K); rows are true classes, columns predicted ones."""
    counts = np.bincount(target_N * num_classes + predicted_N, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def _compute_metrics(
    weights_RN: NDArray[np.float64],
    table_NK: NDArray[np.float64],
    target_N: NDArray[np.int64],
    rarest: tuple[int, ...],
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Return metrics of weighted images, each of shape (R,), and recalls, shape (R, K)."""
    num_images, num_classes = table_NK.shape
    predicted_N = table_NK.argmax(axis=1)
    is_correct_N = predicted_N == target_N
    losses_N = -np.log(np.maximum(table_NK[np.arange(num_images), target_N], _TINY))
    totals_R = weights_RN.sum(axis=1)
    support_RK, predicted_RK = (
        _sum_by_class(weights_RN, labels, np.ones(num_images), num_classes)
        for labels in (target_N, predicted_N)
    )
    hits_RK = _sum_by_class(weights_RN, target_N, is_correct_N.astype(float), num_classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls_RK = hits_RK / support_RK
        f1_RK = 2 * hits_RK / (support_RK + predicted_RK)
    metrics = {
        "accuracy": weights_RN @ is_correct_N / totals_R,
        "balanced_accuracy": average_known(recalls_RK),
        "macro_f1": average_known(f1_RK),
        "loss": weights_RN @ losses_N / totals_R,
    }
    present = [label for label in rarest if support_RK[:, label].any()]
    if present:
        metrics["rarest_third_recall"] = average_known(recalls_RK[:, present])
    if num_classes > 5:
        rank_N = (table_NK > table_NK[np.arange(num_images), target_N][:, None]).sum(axis=1)
        metrics["top5_accuracy"] = weights_RN @ (rank_N < 5) / totals_R
    return metrics, recalls_RK


def average_known(table_RK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each row over its numbers, nan for a row without any, shape (R,)."""
    is_known_RK = np.isfinite(table_RK)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.where(is_known_RK, table_RK, 0.0).sum(
            axis=1
        ) / is_known_RK.sum(axis=1)
    return means


def _sum_by_class(
    weights_RN: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    values_N: NDArray[np.float64],
    num_classes: int,
) -> NDArray[np.float64]:
    """Return the weighted sum of values over the images of each class, shape (R, K)."""
    rows = np.arange(len(labels_N))
    columns_KN = csr_array((values_N, (labels_N, rows)), shape=(num_classes, len(labels_N)))
    sums: NDArray[np.float64] = (columns_KN @ weights_RN.T).T
    return sums


def iterate_resamples(
    groups_N: NDArray[np.int64], *, num_resamples: int = NUM_RESAMPLES
) -> Iterator[NDArray[np.float64]]:
    """Yield how often each image is drawn in bootstrap resamples of groups, shape (R, N)."""
    rows = np.unique(groups_N, return_inverse=True)[1]
    num_units = int(rows.max()) + 1
    random = np.random.default_rng(_SEED)
    size = max(1, min(num_resamples, _MAX_CELLS // len(groups_N)))
    for first in range(0, num_resamples, size):
        draws = [
            np.bincount(random.integers(0, num_units, num_units), minlength=num_units)
            for _ in range(min(size, num_resamples - first))
        ]
        yield np.stack(draws)[:, rows].astype(np.float64)
