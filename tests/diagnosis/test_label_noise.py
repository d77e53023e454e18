"""Estimate of the fraction of wrong labels."""

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.diagnosis.label_noise import estimate_label_noise, estimate_multi_label_noise
from finetune.diagnosis.rules.label_rules import MIN_NOISE_GAIN


def _draw(
    num_images: int, num_classes: int, *, sharpness: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return calibrated probabilities and labels that are drawn from them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, sharpness, (num_images, num_classes))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    draws = generator.random(num_images)[:, None]
    return p, (p.cumsum(axis=1) < draws).sum(axis=1).clip(max=num_classes - 1)


@pytest.mark.parametrize("num_classes", [2, 5, 10])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_right_labels_are_not_accused(num_classes: int, temperature: float) -> None:
    accused = 0
    for seed in range(20):
        p, labels = _draw(200, num_classes, sharpness=5, seed=seed)
        scaled = p ** (1 / temperature)  # over- or under-confident
        noise = estimate_label_noise(scaled / scaled.sum(axis=1, keepdims=True), labels)
        accused += noise.log_likelihood_gain > MIN_NOISE_GAIN
    # one in a hundred is expected of 20
    assert accused <= 1


@pytest.mark.parametrize("fraction", [0.05, 0.2])
@pytest.mark.parametrize("num_classes", [3, 10])
def test_fraction_of_wrong_labels_is_found(fraction: float, num_classes: int) -> None:
    p, labels = _draw(1000, num_classes, sharpness=8, seed=1)
    generator = np.random.default_rng(2)
    wrong = generator.random(len(labels)) < fraction
    shift = generator.integers(1, num_classes, len(labels))
    noise = estimate_label_noise(p, np.where(wrong, (labels + shift) % num_classes, labels))

    assert noise.log_likelihood_gain > MIN_NOISE_GAIN
    assert noise.fraction == pytest.approx(wrong.mean(), abs=0.03)


def _draw_labels(
    num_images: int, num_labels: int, *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return calibrated probabilities of labels, and labels that are drawn from them."""
    generator = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-generator.normal(-3, 5, (num_images, num_labels))))
    return p, generator.random(p.shape) < p


@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0])
def test_right_labels_of_several_are_not_accused_where_probabilities_are_biased(
    bias: float,
) -> None:
    p, labels = _draw_labels(200, 50, seed=3)
    shifted = 1 / (1 + np.exp(-(np.log(p) - np.log1p(-p) + bias)))
    noises = estimate_multi_label_noise(shifted, labels)
    # one in a hundred is expected of 50
    assert sum(noise.log_likelihood_gain > MIN_NOISE_GAIN for noise in noises) <= 2


def test_label_with_wrong_values_is_found_among_right_ones() -> None:
    p, labels = _draw_labels(600, 4, seed=5)
    wrong = np.random.default_rng(6).random(len(labels)) < 0.06
    labels[:, 2] ^= wrong
    noises = estimate_multi_label_noise(p, labels)
    gains = [noise.log_likelihood_gain for noise in noises]

    assert max(gains) == gains[2] > MIN_NOISE_GAIN
    assert noises[2].fraction == pytest.approx(wrong.mean(), abs=0.03)
    assert max(gains[:2]) < MIN_NOISE_GAIN
