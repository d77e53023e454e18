"""Schedules are pure functions of the epoch; shares are exact for any number of groups."""

import math
from fractions import Fraction
from itertools import groupby
from typing import Any

import pytest

from finetune.errors import ConfigError
from finetune.training.schedules.unfreeze import (
    UNFREEZE_SCHEDULES,
    Depth,
    compute_phases,
    gradual,
    head_first,
    linear_probe,
    milestones,
    resolve_depth,
    train_all,
)

PARAMS: dict[str, dict[str, Any]] = {"milestones": {"depths": {0: 1, 2: 0.5, 4: 1.0}}}


@pytest.mark.parametrize("name", UNFREEZE_SCHEDULES)
def test_every_row_gives_a_depth_that_exists_in_any_order_of_epochs(name: str) -> None:
    params = PARAMS.get(name, {})
    for num_groups in (2, 5, 13, 50):
        forward = [UNFREEZE_SCHEDULES[name](epoch, num_groups, **params) for epoch in range(30)]
        backward = [
            UNFREEZE_SCHEDULES[name](epoch, num_groups, **params) for epoch in reversed(range(30))
        ]
        assert forward == backward[::-1]
        assert all(type(depth) is int and 1 <= depth <= num_groups for depth in forward)


def test_all_and_the_probe_never_change() -> None:
    assert [train_all(epoch, 7) for epoch in range(4)] == [7] * 4
    assert [linear_probe(epoch, 7) for epoch in range(4)] == [1] * 4


@pytest.mark.parametrize(
    ("epochs", "depth", "expected"),
    [
        (1, 1.0, [1, 6, 6, 6]),
        (2, 0.5, [1, 1, 3, 3]),
        (3, 2, [1, 1, 1, 2]),
        (0, 4, [4, 4, 4, 4]),
    ],
)
def test_head_first(epochs: int, depth: Depth, expected: list[int]) -> None:
    assert [head_first(e, 6, epochs=epochs, depth=depth) for e in range(4)] == expected


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [1, 3, 4, 6, 6, 6]),  # a quarter of 6 is 1.5, half 3
        ({"start": 2, "step": 1}, [1, 1, 2, 3, 4, 5]),
        ({"every": 2, "step": 2}, [1, 3, 3, 5, 5, 6]),
        ({"start": 0, "step": 0.5}, [4, 6, 6, 6, 6, 6]),
        ({"step": 1.0}, [1, 6, 6, 6, 6, 6]),
    ],
)
def test_gradual(params: dict[str, Any], expected: list[int]) -> None:
    assert [gradual(epoch, 6, **params) for epoch in range(6)] == expected


@pytest.mark.parametrize("step", [1, 0.05, 0.25, 0.3, 1.0])
def test_gradual_reaches_all_groups_and_never_goes_back(step: Depth) -> None:
    for num_groups in range(2, 61):
        depths = [gradual(epoch, num_groups, step=step) for epoch in range(62)]
        assert depths[0] == 1
        assert depths == sorted(depths)
        assert depths[-1] == num_groups
        share = Fraction(str(step)) if isinstance(step, float) else Fraction(step, num_groups)
        expected = [1 + math.ceil(epoch * share * num_groups) for epoch in range(62)]
        assert depths == [min(num_groups, depth) for depth in expected]


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        ({0: 1, 2: 0.5, 4: 1.0}, [1, 1, 3, 3, 6, 6]),
        ({"0": 1, "2": 0.5, "4": 1.0}, [1, 1, 3, 3, 6, 6]),  # as JSON and the console give them
        ({4: 6, 2: 3}, [1, 1, 3, 3, 6, 6]),  # in any order; before the first, the head
        ({0: 6, 3: 1}, [6, 6, 6, 1, 1, 1]),  # and back
        ({1: 99}, [1, 6, 6, 6, 6, 6]),
        ({}, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_milestones(depths: dict[Any, Depth], expected: list[int]) -> None:
    assert [milestones(epoch, 6, depths=depths) for epoch in range(6)] == expected


def test_a_share_is_rounded_up_without_the_errors_of_floating_point() -> None:
    for num_groups in range(2, 61):
        for percent in range(1, 101):
            expected = math.ceil(Fraction(percent, 100) * num_groups)
            assert resolve_depth(percent / 100, num_groups) == expected, (percent, num_groups)


def test_a_whole_number_counts_groups() -> None:
    assert [resolve_depth(depth, 6) for depth in (1, 5, 6, 7, 100)] == [1, 5, 6, 6, 6]


@pytest.mark.parametrize("depth", [0, -1, 0.0, -0.5, True, "half", None, [1]])
def test_what_is_no_depth_is_refused(depth: Any) -> None:
    with pytest.raises(ConfigError, match=r"neither a number of groups nor a share in \(0, 1\]"):
        resolve_depth(depth, 6)


def test_a_share_over_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"depth 1\.5 is over 1\.0.*whole numbers count groups"):
        head_first(3, 6, depth=1.5)


@pytest.mark.parametrize("every", [0, -2])
def test_gradual_refuses_to_stand_still_in_time(every: int) -> None:
    with pytest.raises(ConfigError, match=f"every={every} must be 1 epoch or more"):
        gradual(0, 6, every=every)


@pytest.mark.parametrize("step", [0, -1, 0.0, 1.5])
def test_gradual_refuses_a_step_that_is_none(step: Depth) -> None:
    with pytest.raises(ConfigError, match=r"unfreeze\.params: depth"):
        gradual(0, 6, step=step)


@pytest.mark.parametrize("depths", [[1, 2], 3, {"soon": 1}, {1.5: 1}, {-1: 1}])
def test_milestones_refuses_what_gives_no_epochs(depths: Any) -> None:
    with pytest.raises(ConfigError, match="must give a depth for whole epochs from 0 on"):
        milestones(0, 6, depths=depths)


def test_milestones_finds_a_bad_depth_before_its_epoch_comes() -> None:
    with pytest.raises(ConfigError, match=r"depth 2\.0 is over 1\.0"):
        milestones(0, 6, depths={0: 1, 5: 2.0})


@pytest.mark.parametrize("depths", [[1], [1, 1, 3, 3, 3, 6], [2, 1, 2], [4] * 5])
def test_phases_are_the_runs_of_equal_depths(depths: list[int]) -> None:
    found = compute_phases(depths.__getitem__, num_epochs=len(depths))
    expected = [
        (epochs[0], epochs[-1], depth)
        for depth, run in groupby(range(len(depths)), depths.__getitem__)
        for epochs in [list(run)]
    ]
    assert [(p.first_epoch, p.last_epoch, p.depth) for p in found] == expected
