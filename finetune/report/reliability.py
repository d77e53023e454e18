"""Reliability of probabilities: accuracy by confidence, before and after the temperature."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.report.split_metrics import normalize_logits

# shape suffixes: N images, K classes

NUM_BINS = 15
"""Bins of equal width, those of the expected calibration error in evaluations."""

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Predictions of similar confidence.

    Attributes:
        low: Lower end of the confidence.
        high: Upper end.
        count: Number of predictions.
        confidence: Their mean confidence.
        accuracy: Fraction of them that is correct.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """Accuracy by confidence.

    Attributes:
        bins: Bins with predictions.
        error: Expected calibration error (Guo et al. 2017, eq. 3).
        loss: Mean log loss.
        num_predictions: Number of predictions in all bins.
    """

    bins: tuple[ReliabilityBin, ...]
    error: float
    loss: float
    num_predictions: int


def measure_reliability(
    probabilities: NDArray[np.float64], target: NDArray[np.int64] | NDArray[np.float32]
) -> Reliability:
    """Return the reliability of predicted classes, or of every label of multi-label images.

    Args:
        probabilities: Shape (N, K).
        target: Class indices, shape (N,), or 1 for each label, shape (N, K).
    """
    if target.ndim == 2:
        confidence = probabilities.ravel()
        is_correct = np.asarray(target, np.float64).ravel()
        likelihood = np.where(is_correct > 0.5, confidence, 1 - confidence)
    else:
        rows = np.arange(len(target))
        confidence = probabilities.max(axis=1)
        is_correct = (probabilities.argmax(axis=1) == target).astype(np.float64)
        likelihood = probabilities[rows, target]
    # bins are open at their lower end, as those of torchmetrics
    places = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    bins = [
        ReliabilityBin(
            place / NUM_BINS,
            (place + 1) / NUM_BINS,
            int(is_in.sum()),
            float(confidence[is_in].mean()),
            float(is_correct[is_in].mean()),
        )
        for place in range(NUM_BINS)
        if (is_in := places == place).any()
    ]
    total = len(confidence)
    error = sum(one.count / total * abs(one.accuracy - one.confidence) for one in bins)
    loss = float(-np.log(np.maximum(likelihood, _TINY)).mean())
    return Reliability(tuple(bins), float(error), loss, total)


def undo_temperature(
    probabilities: NDArray[np.float64],
    temperature: float,
    shift: NDArray[np.float64] | None,
    *,
    is_multi_label: bool,
) -> NDArray[np.float64]:
    """Return the probabilities without the temperature, shape (N, K).

    Args:
        probabilities: Probabilities of a calibrated model, shape (N, K).
        temperature: Divisor of its logits.
        shift: Logit adjustment added after the division, shape (K,); None without one.
        is_multi_label: Whether each label has a probability of its own.
    """
    logs = np.log(np.maximum(probabilities, _TINY))
    if is_multi_label:
        logits = logs - np.log(np.maximum(1 - probabilities, _TINY))
        raw: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(logits * temperature, -700, 700)))
        return raw
    offset = 0.0 if shift is None else shift
    return normalize_logits((logs - offset) * temperature + offset)
