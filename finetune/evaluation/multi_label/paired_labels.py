"""Paired comparison of two models on the same multi-label images: differences with intervals."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.multi_label.label_metrics import (
    MEAN_AVERAGE_PRECISION,
    compute_average_precision,
    label_log_loss,
)
from finetune.evaluation.paired_comparison import (
    NUM_RESAMPLES,
    PairedComparison,
    PairedDifference,
    compute_bonett_price_interval,
    compute_percentiles,
    iterate_resamples,
)
from finetune.evaluation.significance import compute_mcnemar_p_value

# shape suffixes: N images, K labels, R resamples

Thresholds = Sequence[float] | NDArray[np.float64]


def compare_paired_labels(
    before_NK: NDArray[np.float64],
    after_NK: NDArray[np.float64],
    is_true_NK: NDArray[np.bool_],
    *,
    thresholds: tuple[Thresholds, Thresholds],
    seed: int,
    groups_N: NDArray[np.int64] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> PairedComparison:
    """Compare the probabilities of labels of two models for the same images.

    Of the mean average precision and the log loss, the intervals are percentiles of a paired
    bootstrap over the images; in a resample without an image with a label, the mean is over the
    others, and a resample without any label is left out. An image is right if all of its labels
    are; the interval of their fraction is that of Bonett and Price, as in ``compare_paired``. With
    groups, whole groups are resampled.

    Args:
        before_NK: Probabilities of the first model, shape (N, K), in [0, 1].
        after_NK: Probabilities of the second model, shape (N, K).
        is_true_NK: Whether each image has each label, shape (N, K).
        thresholds: Probability from which each label is predicted by each model, shape (K,), or
            (N, K) where it differs between images.
        seed: Seed of the bootstrap.
        groups_N: Group of each image, shape (N,); None if the images are independent.
        num_resamples: Number of bootstrap resamples.

    Raises:
        ValueError: There are no images, or none has a label.
    """
    if not is_true_NK.any():
        raise ValueError("a comparison needs at least one image with a label")
    tables = (before_NK, after_NK)
    correct = [
        ((table >= np.asarray(limits)) == is_true_NK).all(axis=1)
        for table, limits in zip(tables, thresholds, strict=True)
    ]
    loss_change_N = _compute_losses(after_NK, is_true_NK) - _compute_losses(before_NK, is_true_NK)
    correct_change_N = correct[1].astype(float) - correct[0].astype(float)
    rows = None if groups_N is None else np.unique(groups_N, return_inverse=True)[1]
    changes: dict[str, list[NDArray[np.float64]]] = {
        MEAN_AVERAGE_PRECISION: [],
        "subset_accuracy": [],
        "loss": [],
    }
    num_images, num_labels = is_true_NK.shape
    for weights_RN in iterate_resamples(num_images, rows, seed, num_resamples, num_labels):
        total_R = weights_RN.sum(axis=1)
        changes["loss"].append(weights_RN @ loss_change_N / total_R)
        changes["subset_accuracy"].append(weights_RN @ correct_change_N / total_R)
        first, second = (compute_weighted_means(table, is_true_NK, weights_RN) for table in tables)
        changes[MEAN_AVERAGE_PRECISION].append(second - first)
    intervals = {name: compute_percentiles(np.concatenate(v)) for name, v in changes.items()}
    only_first, only_second = (
        int((correct[one] & ~correct[other]).sum()) for one, other in ((0, 1), (1, 0))
    )
    if rows is None or rows.max() + 1 == len(rows):
        intervals["subset_accuracy"] = compute_bonett_price_interval(
            only_first, only_second, num_images
        )
    points = {
        MEAN_AVERAGE_PRECISION: [_average_precision(table, is_true_NK) for table in tables],
        "subset_accuracy": [float(flags.mean()) for flags in correct],
        "loss": [label_log_loss(table, is_true_NK) for table in tables],
    }
    return PairedComparison(
        num_images,
        only_first,
        only_second,
        compute_mcnemar_p_value(correct[0], correct[1]),
        {
            name: PairedDifference(name, before, after, after - before, *intervals[name])
            for name, (before, after) in points.items()
        },
    )


def _compute_losses(
    table_NK: NDArray[np.float64], is_true_NK: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the mean log loss of the labels of each image, shape (N,)."""
    of_truth_NK = np.where(is_true_NK, table_NK, 1 - table_NK)
    losses: NDArray[np.float64] = -np.log(of_truth_NK.clip(1e-15, 1)).mean(axis=1)
    return losses


def _average_precision(table_NK: NDArray[np.float64], is_true_NK: NDArray[np.bool_]) -> float:
    values = map(compute_average_precision, table_NK.T, is_true_NK.T)
    return float(np.mean([value for value in values if value is not None]))


def compute_weighted_means(
    table_NK: NDArray[np.float64], is_true_NK: NDArray[np.bool_], weights_RN: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean average precision of weighted images, shape (R,).

    The mean is over the labels that an image with a weight has; nan where there is none.

    Args:
        table_NK: Probability of each label, shape (N, K).
        is_true_NK: Whether each image has each label, shape (N, K).
        weights_RN: Weight of each image, shape (R, N).
    """
    total_R, defined_R = np.zeros(len(weights_RN)), np.zeros(len(weights_RN))
    for scores_N, is_true_N in zip(table_NK.T, is_true_NK.T, strict=True):
        order = np.argsort(-scores_N, kind="stable")
        sorted_scores, is_true = scores_N[order], is_true_N[order]
        # of equal scores the last one has the precision of them all
        ends = np.append(np.flatnonzero(np.diff(sorted_scores)), len(order) - 1)
        end_of = ends[np.searchsorted(ends, np.flatnonzero(is_true))]
        sorted_RN = weights_RN[:, order]
        hits_RN = np.cumsum(sorted_RN * is_true, axis=1)[:, end_of]
        seen_RN = np.cumsum(sorted_RN, axis=1)[:, end_of]
        precision_RN = np.divide(hits_RN, seen_RN, out=np.zeros_like(hits_RN), where=seen_RN > 0)
        weight_RN = sorted_RN[:, is_true]
        present_R = weight_RN.sum(axis=1)
        sums_R = (precision_RN * weight_RN).sum(axis=1)
        is_defined_R = present_R > 0
        total_R += np.divide(sums_R, present_R, out=np.zeros_like(sums_R), where=is_defined_R)
        defined_R += is_defined_R
    undefined_R = np.full_like(total_R, np.nan)
    return np.divide(total_R, defined_R, out=undefined_R, where=defined_R > 0)
