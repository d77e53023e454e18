"""Estimate of the fraction of wrong labels."""

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.diagnosis.label_noise import estimate_label_noise
from finetune.diagnosis.rules.data_rules import MIN_NOISE_GAIN


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
