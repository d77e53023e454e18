"""Thresholds of the distance for a wanted rate of false rejections."""

import numpy as np
import pytest

from finetune.evaluation.rejection.distance_threshold import (
    choose_distance_threshold,
    count_needed_images,
)


def test_new_images_are_rejected_at_the_rate_with_the_interval() -> None:
    """Simulated samples: the mean rate is that promised, and 95% of the rates in the interval."""
    random = np.random.default_rng(0)
    rates, covered = [], []
    for _ in range(2000):
        found = choose_distance_threshold(random.random(150), rate=0.05)
        assert found is not None
        rate = 1 - found.threshold  # of values that are uniform in [0, 1]
        low, high = found.interval
        rates.append(rate)
        covered.append(low <= rate <= high)
    assert found is not None
    assert found.expected_rate == 7 / 151
    assert np.mean(rates) == pytest.approx(found.expected_rate, abs=0.002)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_images_beyond_the_threshold_are_fewer_than_the_rate() -> None:
    distances = np.arange(100, dtype=np.float32)
    found = choose_distance_threshold(distances, rate=0.05)
    assert found is not None
    assert (distances > found.threshold).sum() == found.rank - 1 == 4


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.5, 1)])
def test_too_few_images_have_no_threshold(rate: float, needed: int) -> None:
    assert count_needed_images(rate) == needed
    assert choose_distance_threshold(np.arange(needed - 1.0), rate=rate) is None
    assert choose_distance_threshold(np.arange(float(needed)), rate=rate) is not None
