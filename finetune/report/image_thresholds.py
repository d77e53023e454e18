"""Thresholds at which the labels of each image of a report are predicted."""

import numpy as np
from numpy.typing import NDArray

from finetune.report.run_facts import RunFacts, SplitPredictions

_DEFAULT = 0.5


def get_image_thresholds(facts: RunFacts, predictions: SplitPredictions) -> NDArray[np.float64]:
    """Return the threshold of each label of each image, shape (N, K).

    They are those of the model, but where images have thresholds that other images chose; 0.5 for a
    model without any.

    Args:
        facts: Facts of the run.
        predictions: Predictions of multi-label images, N of them, by the run.
    """
    if predictions.thresholds is not None:
        return predictions.thresholds
    thresholds_K = np.asarray(facts.card.get("thresholds") or (), np.float64)
    if len(thresholds_K) != len(facts.classes):
        thresholds_K = np.full(len(facts.classes), _DEFAULT)
    return np.tile(thresholds_K, (len(predictions.paths), 1))
