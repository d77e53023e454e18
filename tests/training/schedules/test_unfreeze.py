"""Depths of all schedules; rounding of fractions; rejected parameters."""

import math
import re
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
def test_unfreeze_schedules_return_valid_depth_in_any_epoch_order(name: str) -> None:
    params = PARAMS.get(name, {})
    for num_groups in (2, 5, 13, 50):
        forward = [UNFREEZE_SCHEDULES[name](epoch, num_groups, **params) for epoch in range(30)]
        backward = [
            UNFREEZE_SCHEDULES[name](epoch, num_groups, **params) for epoch in reversed(range(30))
        ]
        assert forward == backward[::-1]
        assert all(type(depth) is int and 1 <= depth <= num_groups for depth in forward)


def test_train_all_and_linear_probe_are_constant() -> None:
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
def test_head_first_unfreezes_after_given_epochs(
    epochs: int, depth: Depth, expected: list[int]
) -> None:
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
def test_gradual_deepens_by_step(params: dict[str, Any], expected: list[int]) -> None:
    assert [gradual(epoch, 6, **params) for epoch in range(6)] == expected


@pytest.mark.parametrize("step", [1, 0.05, 0.25, 0.3, 1.0])
def test_gradual_is_monotonic_and_reaches_all_groups(step: Depth) -> None:
    for num_groups in range(2, 61):
        depths = [gradual(epoch, num_groups, step=step) for epoch in range(62)]
        assert depths[0] == 1
        assert depths == sorted(depths)
        assert depths[-1] == num_groups
        fraction = Fraction(str(step)) if isinstance(step, float) else Fraction(step, num_groups)
        expected = [1 + math.ceil(epoch * fraction * num_groups) for epoch in range(62)]
        assert depths == [min(num_groups, depth) for depth in expected]


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        ({0: 1, 2: 0.5, 4: 1.0}, [1, 1, 3, 3, 6, 6]),
        ({"0": 1, "2": 0.5, "4": 1.0}, [1, 1, 3, 3, 6, 6]),  # as in JSON and on the command line
        ({4: 6, 2: 3}, [1, 1, 3, 3, 6, 6]),  # in any order; before the first, the head
        ({0: 6, 3: 1}, [6, 6, 6, 1, 1, 1]),  # shallower again
        ({1: 99}, [1, 6, 6, 6, 6, 6]),
        ({}, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_milestones_apply_last_reached_depth(depths: dict[Any, Depth], expected: list[int]) -> None:
    assert [milestones(epoch, 6, depths=depths) for epoch in range(6)] == expected


def test_resolve_depth_fraction_rounds_up_exactly() -> None:
    for num_groups in range(2, 61):
        for percent in range(1, 101):
            expected = math.ceil(Fraction(percent, 100) * num_groups)
            assert resolve_depth(percent / 100, num_groups) == expected, (percent, num_groups)


def test_resolve_depth_integer_counts_groups() -> None:
    assert [resolve_depth(depth, 6) for depth in (1, 5, 6, 7, 100)] == [1, 5, 6, 6, 6]


@pytest.mark.parametrize(
    ("depth", "text"),
    [
        (0, "0"), (-1, "-1"), (0.0, "0.0"), (-0.5, "-0.5"), (True, "true"), ("half", "'half'"),
        (None, "null"), ([1], "[1]"),
    ],
)  # fmt: skip
def test_resolve_depth_invalid_raises_config_error(depth: Any, text: str) -> None:
    pattern = rf"unfreeze\.params: depth {re.escape(text)} .*\(0, 1\]"
    with pytest.raises(ConfigError, match=pattern):
        resolve_depth(depth, 6)


def test_resolve_depth_fraction_above_one_raises_config_error() -> None:
    with pytest.raises(ConfigError, match=r"unfreeze\.params: depth 1\.5 .*1\.0"):
        head_first(3, 6, depth=1.5)


@pytest.mark.parametrize("every", [0, -2])
def test_gradual_nonpositive_every_raises_config_error(every: int) -> None:
    with pytest.raises(ConfigError, match=rf"unfreeze\.params: every={every}\b"):
        gradual(0, 6, every=every)


@pytest.mark.parametrize("step", [0, -1, 0.0, 1.5])
def test_gradual_invalid_step_raises_config_error(step: Depth) -> None:
    with pytest.raises(ConfigError, match=rf"unfreeze\.params: depth {step}\b"):
        gradual(0, 6, step=step)


@pytest.mark.parametrize(
    ("depths", "text"),
    [
        ([1, 2], "[1, 2]"), (3, "3"), ({"soon": None}, "{soon: null}"), ({1.5: 1}, "{1.5: 1}"),
        ({-1: 1}, "{-1: 1}"),
    ],
)  # fmt: skip
def test_milestones_invalid_mapping_raises_config_error(depths: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"unfreeze.params: depths={text} is not")):
        milestones(0, 6, depths=depths)


def test_milestones_invalid_later_depth_raises_in_first_epoch() -> None:
    with pytest.raises(ConfigError, match=r"unfreeze\.params: depth 2\.0 .*1\.0"):
        milestones(0, 6, depths={0: 1, 5: 2.0})


@pytest.mark.parametrize("depths", [[1], [1, 1, 3, 3, 3, 6], [2, 1, 2], [4] * 5])
def test_compute_phases_groups_consecutive_equal_depths(depths: list[int]) -> None:
    phases = compute_phases(depths.__getitem__, num_epochs=len(depths))
    expected = [
        (epochs[0], epochs[-1], depth)
        for depth, run in groupby(range(len(depths)), depths.__getitem__)
        for epochs in [list(run)]
    ]
    assert [(p.first_epoch, p.last_epoch, p.depth) for p in phases] == expected
