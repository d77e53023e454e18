"""Intervals and p-values: against what defines them, computed in another way."""

import math
from fractions import Fraction
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from finetune.evaluation.significance import (
    apply_holm_correction,
    compute_mcnemar_p_value,
    compute_wilson_interval,
)


@pytest.mark.parametrize(
    ("right", "total"), [(1, 1), (7, 9), (145, 153), (1, 2000), (0, 5), (5, 5)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_ends_are_shares_from_which_so_few_would_just_be_expected(
    right: int, total: int, confidence: float
) -> None:
    low, high = compute_wilson_interval(right, total, confidence=confidence)
    assert 0 <= low <= right / total <= high <= 1
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    for end in (low, high):
        if 0 < end < 1:
            deviation = math.sqrt(end * (1 - end) / total)
            assert abs(right / total - end) == pytest.approx(z * deviation)


def test_all_right_and_none_right_reach_the_ends() -> None:
    assert compute_wilson_interval(5, 5)[1] == 1
    assert compute_wilson_interval(0, 5)[0] == 0


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    for truth in (0.5, 0.9, 0.97):
        counts = random.binomial(150, truth, size=4000)
        ends = (compute_wilson_interval(int(count), 150) for count in counts)
        held = sum(low <= truth <= high for low, high in ends)
        assert held / 4000 == pytest.approx(0.95, abs=0.02)


def answers(both: int, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Return who gets images right: both, the first alone, the second alone."""
    one = np.array([True] * (both + first) + [False] * second)
    other = np.array([True] * both + [False] * first + [True] * second)
    return one, other


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 5), (2, 14), (0, 20), (60, 41)])
def test_mcnemar_is_the_two_sided_binomial_test(first: int, second: int) -> None:
    count = first + second
    few = min(first, second)
    exact = 2 * Fraction(sum(math.comb(count, k) for k in range(few + 1)), 2**count)
    expected = float(min(Fraction(1), exact))
    one, other = answers(10, first, second)
    assert compute_mcnemar_p_value(one, other) == pytest.approx(expected)
    assert compute_mcnemar_p_value(other, one) == pytest.approx(expected)


def test_mcnemar_counts_every_way_to_deal_out_the_images() -> None:
    one, other = answers(3, 1, 5)
    ways = list(product((True, False), repeat=6))
    as_far = sum(abs(2 * sum(way) - 6) >= 4 for way in ways)
    assert compute_mcnemar_p_value(one, other) == pytest.approx(as_far / len(ways))


def test_many_images_neither_overflow_nor_vanish() -> None:
    one, other = answers(0, 20_000, 20_300)
    normal = 2 * NormalDist().cdf(-(300 - 1) / math.sqrt(40_300))
    assert compute_mcnemar_p_value(one, other) == pytest.approx(normal, rel=0.01)


def test_holm_multiplies_the_smallest_by_the_number_of_questions() -> None:
    assert apply_holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert apply_holm_correction([0.6, 0.5]) == [1.0, 1.0]
    assert apply_holm_correction([0.02]) == [0.02]
    assert apply_holm_correction([]) == []
