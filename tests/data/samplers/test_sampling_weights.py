"""What an epoch draws follows the class sizes, against plain loops and formulas of the papers."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_sample_weight

from finetune.data.samplers import sampling_weights as sampling
from finetune.data.samplers.sampling_weights import (
    SAMPLERS,
    GroupDraws,
    check_sampling,
    compute_expected_draws,
    count_draws,
)
from finetune.lookup import has_parameter

COUNTS = (70, 25, 0, 5)
"""The third class has no training images."""

LABELS = np.repeat(np.arange(4), COUNTS)
NUM_EPOCHS = 10


def sampled(name: str, epoch: int = 0, labels: NDArray[np.int64] = LABELS, **params: Any) -> Any:
    """Return what a row of the table gives for an epoch."""
    sampler = SAMPLERS[name]
    if has_parameter(sampler, "epoch"):
        params = {"epoch": epoch, "num_epochs": NUM_EPOCHS, **params}
    return sampler(labels, 4, **params)


def shares(name: str, epoch: int = 0, **params: Any) -> NDArray[np.float64]:
    """Return the share of an epoch's draws that goes to each class."""
    found = compute_expected_draws(sampled(name, epoch, **params), len(LABELS))
    return np.asarray(np.bincount(LABELS, weights=found, minlength=4) / found.sum(), float)


BY_IMAGE = np.asarray(COUNTS) / sum(COUNTS)
BY_CLASS = (np.asarray(COUNTS) > 0) / 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_epoch_of_every_sampler_can_be_drawn_and_is_as_long(name: str) -> None:
    found = [sampled(name, epoch) for epoch in range(NUM_EPOCHS)]
    for one in found:
        check_sampling(one, len(LABELS))
        assert np.isfinite(compute_expected_draws(one, len(LABELS))).all()
    assert len({count_draws(one, len(LABELS)) for one in found}) == 1


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
def test_classes_have_the_shares_that_are_promised(
    name: str, epoch: int, expected: NDArray[np.float64]
) -> None:
    np.testing.assert_allclose(shares(name, epoch), expected)


def test_weights_are_those_of_scikit_learn_up_to_a_factor() -> None:
    balanced = compute_sample_weight("balanced", LABELS)
    found, roots = sampled("weighted"), sampled("sqrt")
    np.testing.assert_allclose(found / found.sum(), balanced / balanced.sum())
    np.testing.assert_allclose(roots / roots.sum(), balanced**0.5 / (balanced**0.5).sum())
    np.testing.assert_allclose(sampled("weighted", power=0.5), roots)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_numbers_are_sums_of_powers(beta: float) -> None:
    effective = [sum(beta**power for power in range(count)) for count in COUNTS]
    expected = [1 / effective[label] for label in LABELS]
    np.testing.assert_allclose(sampled("effective_number", beta=beta), expected)


def test_large_classes_are_alike_by_their_effective_numbers() -> None:
    labels = np.repeat([0, 1, 2, 3], [20_000, 10_000, 20, 10])
    weights = sampled("effective_number", labels=labels)
    assert weights[0] == pytest.approx(weights[25_000], rel=1e-3)
    assert weights[-1] / weights[-11] == pytest.approx(2, rel=0.01)


def rows(found: GroupDraws, seed: int = 0) -> list[int]:
    """Return the rows of an epoch."""
    return [int(row) for row in found.draw_rows(np.random.default_rng(seed))]


def test_oversampling_draws_each_image_of_a_class_as_often_give_or_take_one() -> None:
    drawn = rows(sampled("oversample"))
    assert Counter(LABELS[drawn].tolist()) == {0: 70, 1: 70, 3: 70}
    times = np.bincount(drawn, minlength=len(LABELS))
    assert set(times[LABELS == 0]) == {1}
    assert set(times[LABELS == 1]) == {2, 3}
    assert set(times[LABELS == 3]) == {14}
    assert drawn != sorted(drawn)


def test_undersampling_draws_nothing_twice_and_others_each_epoch() -> None:
    found = sampled("undersample")
    epochs = [rows(found, seed) for seed in range(200)]
    for drawn in epochs:
        assert Counter(LABELS[drawn].tolist()) == {0: 5, 1: 5, 3: 5}
        assert len(set(drawn)) == 15
    assert epochs[0] != epochs[1]
    assert {row for drawn in epochs for row in drawn} == set(range(100))


def test_the_abundant_classes_come_first_as_often_as_all_later() -> None:
    drawn = rows(sampled("abundant_first"))
    times = np.bincount(drawn, minlength=len(LABELS))
    assert len(drawn) == 100
    assert set(times[LABELS < 2]) == {1, 2}
    assert not times[LABELS == 3].any()


@pytest.mark.parametrize(
    ("counts", "params", "abundant"),
    [
        ([9, 1], {}, None),  # one class alone would teach nothing
        ([9, 1], {"min_relative_size": 1.0}, None),
        ([5, 5, 5, 5], {}, None),
        ([50, 40, 3, 2], {}, {0, 1}),
        ([50, 40, 30, 2], {}, {0, 1}),
        ([50, 40, 30, 2], {"min_relative_size": 0.5}, {0, 1, 2}),
        ([50, 4, 3, 2], {"min_relative_size": 0.9}, {0, 1}),
        ([50, 40, 30, 2], {"min_relative_size": 0.0}, None),
    ],
)
def test_two_classes_at_least_are_abundant(
    counts: list[int], params: dict[str, Any], abundant: set[int] | None
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    found = sampled("abundant_first", labels=labels, **params)
    if abundant is None:
        assert found is None
    else:
        assert set(labels[rows(found)].tolist()) == abundant


@pytest.mark.parametrize("name", ["progressive", "deferred", "abundant_first"])
def test_a_single_epoch_is_the_last(name: str) -> None:
    found = SAMPLERS[name](LABELS, 4, epoch=0, num_epochs=1)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found / found.sum(), compute_sample_weight("balanced", LABELS) / 100)


@pytest.mark.parametrize(
    ("share", "num_epochs", "expected"),
    [(0.0, 5, 0), (0.8, 5, 4), (0.8, 6, 4), (0.7, 10, 7), (0.29, 100, 29), (0.99, 3, 2)],
)
def test_a_share_of_the_epochs_is_an_epoch(share: float, num_epochs: int, expected: int) -> None:
    assert sampling.compute_start_epoch(share, num_epochs) == expected


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("effective_number", {"beta": 1.0}, "beta lies in"),
        ("deferred", {"start_fraction": 1.0}, "a share of the epochs lies in"),
        ("abundant_first", {"share": -0.1}, "a share of the epochs lies in"),
        ("abundant_first", {"min_relative_size": 2.0}, "min_relative_size lies in"),
    ],
)
def test_values_out_of_range_are_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampled(name, **params)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.ones(9), "10 weights of 0 or more"),
        (np.ones((10, 1)), "10 weights of 0 or more"),
        (-np.ones(10), "weights of 0 or more"),
        (np.full(10, np.nan), "^weights of 0 or more are needed, not nan$"),
        (np.full(10, np.inf), "^weights with a finite sum are needed, not up to inf$"),
        (np.full(10, 1e308), r"^weights with a finite sum are needed, not up to 1e\+308$"),
        (np.zeros(10), "must not all be 0"),
        (GroupDraws(np.zeros(9, np.int64), np.array([3])), "for each of 10 images"),
        (GroupDraws(np.ones(10, np.int64), np.array([3])), "a group with a count"),
        (GroupDraws(np.zeros(10, np.int64), np.array([3, 1])), "none of a group without images"),
        (GroupDraws(np.zeros(10, np.int64), np.array([-3])), "counts of 0 or more"),
    ],
)
def test_what_cannot_be_drawn_is_refused(found: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sampling(found, 10)
