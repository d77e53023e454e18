"""Tests of sampling strategies against plain loops and the formulas of the papers."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_sample_weight

from finetune.data import samplers
from finetune.data.samplers.sampling_weights import (
    SAMPLERS,
    GroupDraws,
    check_sampling,
    compute_expected_draws,
    compute_start_epoch,
    count_draws,
)
from finetune.lookup import has_parameter

COUNTS = (70, 25, 0, 5)
"""The third class has no training images."""

LABELS = np.repeat(np.arange(4), COUNTS)
NUM_EPOCHS = 10


def call_sampler(
    name: str, epoch: int = 0, labels: NDArray[np.int64] = LABELS, **params: Any
) -> Any:
    """Return the sampling of a strategy of the registry for an epoch."""
    sampler = SAMPLERS[name]
    if has_parameter(sampler, "epoch"):
        params = {"epoch": epoch, "num_epochs": NUM_EPOCHS, **params}
    return sampler(labels, 4, **params)


def compute_class_fractions(name: str, epoch: int = 0, **params: Any) -> NDArray[np.float64]:
    """Return the fraction of an epoch's draws of each class."""
    draws = compute_expected_draws(call_sampler(name, epoch, **params), len(LABELS))
    return np.asarray(np.bincount(LABELS, weights=draws, minlength=4) / draws.sum(), float)


BY_IMAGE = np.asarray(COUNTS) / sum(COUNTS)
BY_CLASS = (np.asarray(COUNTS) > 0) / 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_give_valid_epochs_of_equal_length(name: str) -> None:
    sampling = [call_sampler(name, epoch) for epoch in range(NUM_EPOCHS)]
    for one in sampling:
        check_sampling(one, len(LABELS))
        assert np.isfinite(compute_expected_draws(one, len(LABELS))).all()
    assert len({count_draws(one, len(LABELS)) for one in sampling}) == 1


@pytest.mark.parametrize(
    ("name", "epoch", "expected"),
    [
        ("uniform", 0, BY_IMAGE),
        ("weighted", 0, BY_CLASS),
        ("oversample", 0, BY_CLASS),
        ("undersample", 0, BY_CLASS),
        ("progressive", 0, BY_IMAGE),
        ("progressive", 3, 2 / 3 * BY_IMAGE + 1 / 3 * BY_CLASS),
        ("progressive", 9, BY_CLASS),
        ("deferred", 7, BY_IMAGE),
        ("deferred", 8, BY_CLASS),
        ("abundant_first", 4, np.array([70, 25, 0, 0]) / 95),
        ("abundant_first", 5, BY_CLASS),
    ],
)
def test_samplers_give_expected_class_fractions(
    name: str, epoch: int, expected: NDArray[np.float64]
) -> None:
    np.testing.assert_allclose(compute_class_fractions(name, epoch), expected)


def test_weighted_is_proportional_to_scikit_learn() -> None:
    balanced = compute_sample_weight("balanced", LABELS)
    sampling, roots = call_sampler("weighted"), call_sampler("sqrt")
    np.testing.assert_allclose(sampling / sampling.sum(), balanced / balanced.sum())
    np.testing.assert_allclose(roots / roots.sum(), balanced**0.5 / (balanced**0.5).sum())
    np.testing.assert_allclose(call_sampler("weighted", power=0.5), roots)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_number_equals_sum_of_powers(beta: float) -> None:
    effective = [sum(beta**power for power in range(count)) for count in COUNTS]
    expected = [1 / effective[label] for label in LABELS]
    np.testing.assert_allclose(call_sampler("effective_number", beta=beta), expected)


def test_effective_number_of_large_classes_is_equal() -> None:
    labels = np.repeat([0, 1, 2, 3], [20_000, 10_000, 20, 10])
    weights = call_sampler("effective_number", labels=labels)
    assert weights[0] == pytest.approx(weights[25_000], rel=1e-3)
    assert weights[-1] / weights[-11] == pytest.approx(2, rel=0.01)


def draw_rows(draws: GroupDraws, seed: int = 0) -> list[int]:
    """Return the rows of an epoch."""
    return [int(row) for row in draws.draw_rows(np.random.default_rng(seed))]


def test_oversample_draws_images_of_class_evenly() -> None:
    drawn = draw_rows(call_sampler("oversample"))
    assert Counter(LABELS[drawn].tolist()) == {0: 70, 1: 70, 3: 70}
    times = np.bincount(drawn, minlength=len(LABELS))
    assert set(times[LABELS == 0]) == {1}
    assert set(times[LABELS == 1]) == {2, 3}
    assert set(times[LABELS == 3]) == {14}
    assert drawn != sorted(drawn)


def test_undersample_never_repeats_and_varies_by_epoch() -> None:
    sampling = call_sampler("undersample")
    epochs = [draw_rows(sampling, seed) for seed in range(200)]
    for drawn in epochs:
        assert Counter(LABELS[drawn].tolist()) == {0: 5, 1: 5, 3: 5}
        assert len(set(drawn)) == 15
    assert epochs[0] != epochs[1]
    assert {row for drawn in epochs for row in drawn} == set(range(100))


def test_abundant_first_draws_n_images_of_abundant_classes() -> None:
    drawn = draw_rows(call_sampler("abundant_first"))
    times = np.bincount(drawn, minlength=len(LABELS))
    assert len(drawn) == 100
    assert set(times[LABELS < 2]) == {1, 2}
    assert not times[LABELS == 3].any()


@pytest.mark.parametrize(
    ("counts", "params", "abundant"),
    [
        ([9, 1], {}, None),  # nothing can be learned from a single class
        ([9, 1], {"min_relative_size": 1.0}, None),
        ([5, 5, 5, 5], {}, None),
        ([50, 40, 3, 2], {}, {0, 1}),
        ([50, 40, 30, 2], {}, {0, 1}),
        ([50, 40, 30, 2], {"min_relative_size": 0.5}, {0, 1, 2}),
        ([50, 4, 3, 2], {"min_relative_size": 0.9}, {0, 1}),
        ([50, 40, 30, 2], {"min_relative_size": 0.0}, None),
    ],
)
def test_abundant_first_has_at_least_two_abundant_classes(
    counts: list[int], params: dict[str, Any], abundant: set[int] | None
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    sampling = call_sampler("abundant_first", labels=labels, **params)
    if abundant is None:
        assert sampling is None
    else:
        assert set(labels[draw_rows(sampling)].tolist()) == abundant


@pytest.mark.parametrize("name", ["progressive", "deferred", "abundant_first"])
def test_schedules_treat_single_epoch_as_last(name: str) -> None:
    sampling = SAMPLERS[name](LABELS, 4, epoch=0, num_epochs=1)
    assert isinstance(sampling, np.ndarray)
    np.testing.assert_allclose(
        sampling / sampling.sum(), compute_sample_weight("balanced", LABELS) / 100
    )


@pytest.mark.parametrize(
    ("fraction", "num_epochs", "expected"),
    [(0.0, 5, 0), (0.8, 5, 4), (0.8, 6, 4), (0.7, 10, 7), (0.29, 100, 29), (0.99, 3, 2)],
)
def test_compute_start_epoch(fraction: float, num_epochs: int, expected: int) -> None:
    assert compute_start_epoch(fraction, num_epochs) == expected


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("effective_number", {"beta": 1.0}, "beta .*1.0"),
        ("deferred", {"start_fraction": 1.0}, r"fraction.*1\.0"),
        ("abundant_first", {"first_fraction": -0.1}, r"fraction.*-0\.1"),
        ("abundant_first", {"min_relative_size": 2.0}, "min_relative_size.* 2"),
    ],
)
def test_samplers_parameter_out_of_range_raises_value_error(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call_sampler(name, **params)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (np.ones(9), r"\(10,\).*\(9,\)"),
        (np.ones((10, 1)), r"\(10,\).*\(10, 1\)"),
        (-np.ones(10), r"weights.* -1\.0"),
        (np.full(10, np.nan), "weights.* nan"),
        (np.full(10, np.inf), "weights.* finite.* inf"),
        (np.full(10, 1e308), r"weights.* finite.* 1e\+308"),
        (np.zeros(10), "weights.* all be 0"),
        (GroupDraws(np.zeros(9, np.int64), np.array([3])), "groups .*10 .* 9 "),
        (GroupDraws(np.ones(10, np.int64), np.array([3])), "groups .* 2 groups .* 1 counts"),
        (GroupDraws(np.zeros(10, np.int64), np.array([3, 1])), "counts .*groups without images"),
        (GroupDraws(np.zeros(10, np.int64), np.array([-3])), "counts .*0 or more"),
    ],
)
def test_check_sampling_invalid_sampling_raises_value_error(sampling: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sampling(sampling, 10)


def test_group_draws_is_exported() -> None:
    assert samplers.GroupDraws is GroupDraws
