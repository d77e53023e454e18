"""Fraction of wrong labels, estimated from the probabilities of a model that did not see them.

A calibrated model is sometimes wrong, but its wrong predictions are the less confident ones; wrong
labels contradict confident ones as often as others. Two models of the labels are compared by their
likelihoods, both with a temperature T of their own: without and with a fraction e of labels that
are drawn from all classes alike, p(y | x) = (1 - e) softmax(z / T)_y + e / K. This is the symmetric
noise of Natarajan et al. 2013 (https://papers.nips.cc/paper/5073-learning-with-noisy-labels).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TEMPERATURES = np.geomspace(0.2, 5.0, 49)
_FRACTIONS = np.concatenate([[0.0], np.geomspace(0.002, 0.5, 48)])
_MAX_NUMBERS = 1_000_000
"""Probabilities that are looked at; of more, evenly spaced images are, for a second at most."""

_TINY = float(np.finfo(np.float32).tiny)

_LABEL_TEMPERATURES = np.geomspace(0.25, 4.0, 13)
_BIASES = np.linspace(-2.0, 2.0, 9)
_LABEL_FRACTIONS = np.concatenate([[0.0], np.geomspace(0.005, 0.5, 9)])
_MAX_LABEL_NUMBERS = 20_000

# shape suffixes: N images, K classes or labels, F fractions


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """Estimate of the fraction of wrong labels.

    Attributes:
        fraction: Most likely fraction of labels that are wrong, in [0, 0.5].
        log_likelihood_gain: Log likelihood of that fraction minus that of no wrong labels.
        num_images: Number of images that were looked at.
    """

    fraction: float
    log_likelihood_gain: float
    num_images: int


def estimate_label_noise(
    probabilities_NK: NDArray[np.float64], target_N: NDArray[np.int64]
) -> LabelNoise:
    """Estimate the fraction of wrong labels of images that the model was not trained on.

    Args:
        probabilities_NK: Class probabilities, calibrated or not, shape (N, K).
        target_N: Labels as class indices, shape (N,).
    """
    num_classes = probabilities_NK.shape[1]
    step = max(1, -(-probabilities_NK.size // _MAX_NUMBERS))
    logits_NK = np.log(np.maximum(probabilities_NK[::step], _TINY))
    target_N = target_N[::step]
    rows = np.arange(len(target_N))
    best_F = np.full(len(_FRACTIONS), -np.inf)
    for temperature in _TEMPERATURES:
        scaled_NK = logits_NK / temperature
        scaled_NK -= scaled_NK.max(axis=1, keepdims=True)
        chosen_N = np.exp(scaled_NK[rows, target_N]) / np.exp(scaled_NK).sum(axis=1)
        mixed_FN = (1 - _FRACTIONS[:, None]) * chosen_N + _FRACTIONS[:, None] / num_classes
        best_F = np.maximum(best_F, np.log(np.maximum(mixed_FN, _TINY)).sum(axis=1))
    best = int(best_F.argmax())
    # a label that is drawn from all classes is right once in K times
    fraction = float(_FRACTIONS[best]) * (1 - 1 / num_classes)
    return LabelNoise(fraction, float(best_F[best] - best_F[0]), len(target_N))


def estimate_multi_label_noise(
    probabilities_NK: NDArray[np.float64], is_true_NK: NDArray[np.bool_]
) -> tuple[LabelNoise, ...]:
    """Estimate the fraction of images of which each label is wrong: missing or too much.

    Each label is judged by itself, as those of an image are not independent: as two classes, with a
    temperature and a bias of its own, which positive weights shift.

    Args:
        probabilities_NK: Probability of each label, shape (N, K).
        is_true_NK: Whether each image has each label, shape (N, K).
    """
    step = max(1, -(-probabilities_NK.size // _MAX_LABEL_NUMBERS))
    p_NK = probabilities_NK[::step].clip(_TINY, 1 - 1e-12)
    logits_NK = np.log(p_NK) - np.log1p(-p_NK)
    signs_NK = np.where(is_true_NK[::step], 1.0, -1.0)
    return tuple(
        _estimate_noise_of_label(logits_N, signs_N)
        for logits_N, signs_N in zip(logits_NK.T, signs_NK.T, strict=True)
    )


def _estimate_noise_of_label(
    logits_N: NDArray[np.float64], signs_N: NDArray[np.float64]
) -> LabelNoise:
    """Return the estimate for a label, given its logits and 1 or -1 for present and absent."""
    best_F = np.full(len(_LABEL_FRACTIONS), -np.inf)
    for temperature in _LABEL_TEMPERATURES:
        for bias in _BIASES:
            margin_N = signs_N * (logits_N / temperature + bias)
            chosen_N = np.exp(-np.logaddexp(0.0, -margin_N))
            mixed_FN = (1 - _LABEL_FRACTIONS[:, None]) * chosen_N + _LABEL_FRACTIONS[:, None] / 2
            best_F = np.maximum(best_F, np.log(np.maximum(mixed_FN, _TINY)).sum(axis=1))
    best = int(best_F.argmax())
    gain = float(best_F[best] - best_F[0])
    return LabelNoise(float(_LABEL_FRACTIONS[best]) / 2, gain, len(logits_N))
