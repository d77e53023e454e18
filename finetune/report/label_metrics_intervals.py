"""Metrics of multi-label predictions with 95% intervals."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from finetune.report.run_facts import SplitPredictions
from finetune.report.split_metrics import average_known, compute_interval, iterate_resamples

# shape suffixes: N images, K labels, R resamples

NUM_RESAMPLES = 300
MAX_CELLS = 200_000_000
"""Images times labels times resamples above which there are no intervals: seconds of time."""

MIN_POSITIVES = {"macro_f1": 10, "mean_average_precision": 20}
"""Positives of the rarest label from which means over labels have an interval.

In simulations of 20 labels of 10% of the images, 95% intervals covered the true value of the macro
F1 in 73% of the cases with 3 positives of each label, in 85% with 5 and in 94% with 10, and of the
mean average precision in 74%, 80%, 88% and, with 20 positives, in 91%.
"""

_TINY = float(np.finfo(np.float32).tiny)


@lru_cache(maxsize=8)
def measure_label_intervals(
    predictions: SplitPredictions, thresholds: tuple[float, ...]
) -> Mapping[str, tuple[float, float]]:
    """Return the 95% interval of each metric, as ``compute_label_intervals`` does.

    Args:
        predictions: Predictions with targets of shape (N, K).
        thresholds: Probability from which each label is predicted, shape (K,).
    """
    return compute_label_intervals(predictions, np.array(thresholds))


def compute_label_intervals(
    predictions: SplitPredictions, thresholds: NDArray[np.float64]
) -> Mapping[str, tuple[float, float]]:
    """Return the 95% interval of each metric; empty for very many images and labels.

    Means over labels have none where a label has too few positives: the interval is too narrow.

    Args:
        predictions: Predictions with targets of shape (N, K).
        thresholds: Probability from which each label is predicted, shape (K,), or (N, K) where it
            differs between images.
    """
    table_NK, target_NK = predictions.probabilities, np.asarray(predictions.target, np.float64)
    if table_NK.size == 0 or table_NK.size * NUM_RESAMPLES > MAX_CELLS:
        return {}
    ones_1N = np.ones((1, len(table_NK)))
    values = compute_label_metrics(ones_1N, table_NK, target_NK, thresholds)
    resampled: dict[str, list[NDArray[np.float64]]] = {name: [] for name in values}
    for weights_RN in iterate_resamples(predictions.groups, num_resamples=NUM_RESAMPLES):
        metrics = compute_label_metrics(weights_RN, table_NK, target_NK, thresholds)
        for name, values_R in metrics.items():
            resampled[name].append(values_R)
    intervals = {
        name: compute_interval(float(values[name][0]), np.concatenate(parts), name)
        for name, parts in resampled.items()
    }
    fewest = _count_fewest_positives(predictions)
    return {
        name: interval
        for name, interval in intervals.items()
        if interval is not None and fewest >= MIN_POSITIVES.get(name, 0)
    }


def _count_fewest_positives(predictions: SplitPredictions) -> int:
    """Return the positives of the rarest label that has any; dependent images count as one."""
    positive_NK = np.asarray(predictions.target) > 0.5
    counts = [len(np.unique(predictions.groups[is_positive_N])) for is_positive_N in positive_NK.T]
    return min((count for count in counts if count), default=0)


def compute_label_metrics(
    weights_RN: NDArray[np.float64],
    table_NK: NDArray[np.float64],
    target_NK: NDArray[np.float64],
    thresholds: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Return metrics of weighted images, each of shape (R,), nan where they are undefined."""
    predicted_NK = (table_NK >= thresholds).astype(np.float64)
    totals_R = weights_RN.sum(axis=1)
    hits_RK = weights_RN @ (predicted_NK * target_NK)
    sizes_RK = weights_RN @ predicted_NK + weights_RN @ target_NK
    likelihood_NK = np.where(target_NK > 0.5, table_NK, 1 - table_NK)
    losses_N = -np.log(np.maximum(likelihood_NK, _TINY)).mean(axis=1)
    is_exact_N = (predicted_NK == target_NK).all(axis=1).astype(np.float64)
    precision_RK = np.stack(
        [
            _compute_average_precision(weights_RN, table_NK[:, label], target_NK[:, label])
            for label in range(table_NK.shape[1])
        ],
        axis=1,
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "loss": weights_RN @ losses_N / totals_R,
            "subset_accuracy": weights_RN @ is_exact_N / totals_R,
            "micro_f1": 2 * hits_RK.sum(axis=1) / sizes_RK.sum(axis=1),
            "macro_f1": average_known(2 * hits_RK / sizes_RK),
            "mean_average_precision": average_known(precision_RK),
            "micro_average_precision": _compute_average_precision(
                np.repeat(weights_RN, table_NK.shape[1], axis=1),
                table_NK.ravel(),
                target_NK.ravel(),
            ),
        }


def _compute_average_precision(
    weights_RN: NDArray[np.float64], scores_N: NDArray[np.float64], target_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the average precision, shape (R,); images of equal scores share a threshold."""
    order = np.argsort(-scores_N, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores_N[order]) != 0, True))
    hits_RT = np.cumsum(weights_RN[:, order] * target_N[order], axis=1)[:, ends]
    sizes_RT = np.cumsum(weights_RN[:, order], axis=1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_RT = np.where(sizes_RT > 0, hits_RT / np.maximum(sizes_RT, 1e-12), 0.0)
        gained_RT = np.diff(hits_RT, axis=1, prepend=0.0)
        values: NDArray[np.float64] = (gained_RT * precision_RT).sum(axis=1) / hits_RT[:, -1]
    return values
