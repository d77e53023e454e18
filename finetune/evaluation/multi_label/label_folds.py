"""Metrics of labels in a cross-validation, at thresholds that were chosen on other folds.

Thresholds that are chosen on the images on which F1 is then measured make it too high, the more so
the fewer images of a label there are. The predictions of all folds together allow for both: the
thresholds of the model that ships are chosen on all of them, and its F1 is measured on each fold
with thresholds of the other folds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.multi_label.label_metrics import MultiLabelEvaluation, evaluate_labels
from finetune.evaluation.multi_label.label_thresholds import choose_thresholds

# N images, K labels


def choose_fold_thresholds(
    probabilities_NK: Tensor, target_NK: Tensor, folds_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the threshold of each label of each image, chosen on other folds, shape (N, K).

    Args:
        probabilities_NK: Probability of each label of held-out images, shape (N, K).
        target_NK: 1 for each label of each image, else 0, shape (N, K).
        folds_N: Fold of each image, at least two of them, shape (N,).
    """
    thresholds_NK = np.empty(tuple(probabilities_NK.shape), np.float64)
    for fold in np.unique(folds_N).tolist():
        others = np.flatnonzero(folds_N != fold)
        thresholds_NK[folds_N == fold] = choose_thresholds(
            probabilities_NK[others], target_NK[others]
        )
    return thresholds_NK


def evaluate_label_folds(
    probabilities_NK: Tensor,
    target_NK: Tensor,
    folds_N: NDArray[np.int64],
    *,
    classes: Sequence[str],
) -> list[MultiLabelEvaluation]:
    """Return the evaluation of each fold's images, at thresholds of the other folds.

    Args:
        probabilities_NK: Probability of each label of held-out images, shape (N, K).
        target_NK: 1 for each label of each image, else 0, shape (N, K).
        folds_N: Fold of each image, at least two of them, shape (N,).
        classes: Label names, K of them.
    """
    thresholds_NK = choose_fold_thresholds(probabilities_NK, target_NK, folds_N)
    rows_of_fold = [np.flatnonzero(folds_N == fold) for fold in np.unique(folds_N)]
    return [
        evaluate_labels(
            probabilities_NK[rows],
            target_NK[rows],
            classes=classes,
            image_thresholds_NK=thresholds_NK[rows],
        )
        for rows in rows_of_fold
    ]
