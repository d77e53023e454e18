"""Confidence intervals and p-values, compared with their definitions."""

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
    ("num_correct", "total"), [(1, 1), (7, 9), (145, 153), (1, 2000), (0, 5), (5, 5)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_compute_wilson_interval_ends_solve_the_defining_equation(
    num_correct: int, total: int, confidence: float
) -> None:
    low, high = compute_wilson_interval(num_correct, total, confidence=confidence)
    assert 0 <= low <= num_correct / total <= high <= 1
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    for end in (low, high):
        if 0 < end < 1:
            deviation = math.sqrt(end * (1 - end) / total)
            assert abs(num_correct / total - end) == pytest.approx(z * deviation)


def test_compute_wilson_interval_reaches_zero_and_one() -> None:
    assert compute_wilson_interval(5, 5)[1] == 1
    assert compute_wilson_interval(0, 5)[0] == 0


def test_compute_wilson_interval_has_nominal_coverage() -> None:
    random = np.random.default_rng(3)
    for accuracy in (0.5, 0.9, 0.97):
        counts = random.binomial(150, accuracy, size=4000)
        intervals = (compute_wilson_interval(int(count), 150) for count in counts)
        num_covered = sum(low <= accuracy <= high for low, high in intervals)
        assert num_covered / 4000 == pytest.approx(0.95, abs=0.02)


def build_correctness(both: int, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Return correctness of two models: counts of both, only the first, only the second."""
    one = np.array([True] * (both + first) + [False] * second)
    other = np.array([True] * both + [False] * first + [True] * second)
    return one, other


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 5), (2, 14), (0, 20), (60, 41)])
def test_compute_mcnemar_p_value_equals_two_sided_binomial_test(first: int, second: int) -> None:
    count = first + second
    smaller = min(first, second)
    exact = 2 * Fraction(sum(math.comb(count, k) for k in range(smaller + 1)), 2**count)
    expected = float(min(Fraction(1), exact))
    one, other = build_correctness(10, first, second)
    assert compute_mcnemar_p_value(one, other) == pytest.approx(expected)
    assert compute_mcnemar_p_value(other, one) == pytest.approx(expected)


def test_compute_mcnemar_p_value_equals_enumeration() -> None:
    one, other = build_correctness(3, 1, 5)
    outcomes = list(product((True, False), repeat=6))
    num_extreme = sum(abs(2 * sum(outcome) - 6) >= 4 for outcome in outcomes)
    assert compute_mcnemar_p_value(one, other) == pytest.approx(num_extreme / len(outcomes))


def test_compute_mcnemar_p_value_many_images_neither_overflows_nor_underflows() -> None:
    one, other = build_correctness(0, 20_000, 20_300)
    normal = 2 * NormalDist().cdf(-(300 - 1) / math.sqrt(40_300))
    assert compute_mcnemar_p_value(one, other) == pytest.approx(normal, rel=0.01)


def test_apply_holm_correction_multiplies_the_smallest_by_the_number_of_tests() -> None:
    assert apply_holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert apply_holm_correction([0.6, 0.5]) == [1.0, 1.0]
    assert apply_holm_correction([0.02]) == [0.02]
    assert apply_holm_correction([]) == []
