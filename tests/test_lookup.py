"""Names, suggestions and parameters."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from finetune.errors import ConfigError
from finetune.lookup import check_params, look_up, suggest_name

TABLE = {"gradual": 1, "all": 2}


def test_a_near_name_is_suggested_and_a_far_one_gets_the_list() -> None:
    assert suggest_name("gradul", TABLE) == " Did you mean 'gradual'?"
    assert suggest_name("zzz", TABLE) == " Known: all, gradual."
    assert suggest_name("zzz", [f"name{i}" for i in range(13)]) == ""


def test_a_name_gives_its_row_and_a_path_the_users_object() -> None:
    assert look_up(TABLE, "all", setting="s") == 2
    assert look_up(TABLE, "math:sqrt", setting="s") is math.sqrt


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gradul", r"unfreeze\.name: unknown name 'gradul'\. Did you mean 'gradual'\?"),
        ("no_such_pkg.mod:f", r"unfreeze\.name: cannot import 'no_such_pkg\.mod'"),
        ("math:sqrtt", r"unfreeze\.name: module 'math' has no 'sqrtt'\. Did you mean 'sqrt'\?"),
        ("math:", "module 'math' has no ''"),
        (":f", "cannot import ''"),
        (".relative:f", r"cannot import '\.relative'"),
    ],
)
def test_a_wrong_name_says_where_and_what(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        look_up(TABLE, name, setting="unfreeze.name")


def schedule(epoch: int, num_groups: int, *, every: int, step: float = 1.0) -> None:
    """Stand for a component of which the caller gives the first two arguments."""


def with_rest(epoch: int, num_groups: int, *rest: int) -> None:
    """Stand for a function with arguments that need not be given."""


def other_names(when: int, size: int, *, every: int) -> None:
    """Stand for the user's own function, whose leading arguments bear names of its own."""


def open_ended(epoch: int, num_groups: int, *, every: int, **more: float) -> None:
    """Stand for a function that takes any keyword."""


@pytest.mark.parametrize(
    ("function", "params"),
    [
        (schedule, {"every": 2}),
        (schedule, {"every": 2, "step": 3.0}),
        (with_rest, {}),
        (other_names, {"every": 2}),
        (open_ended, {"every": 2, "unheard_of": 1.0}),
    ],
)
def test_complete_parameters_pass(function: Callable[..., Any], params: Mapping[str, Any]) -> None:
    check_params(function, params, num_positional=2, setting="s")


@pytest.mark.parametrize(
    ("function", "params", "message"),
    [
        (schedule, {"evry": 2}, r"unfreeze\.params: unknown parameter 'evry'.* mean 'every'"),
        (schedule, {"step": 2}, r"unfreeze\.params: parameter 'every' is required"),
        (schedule, {"every": 1, "epoch": 2}, "unknown parameter 'epoch'"),
        (with_rest, {"every": 1}, r"unknown parameter 'every'\. It takes none"),
        (open_ended, {"unheard_of": 1.0}, "parameter 'every' is required"),
        (None, {}, r"unfreeze\.params: None is no function"),
        ("gradual", {}, r"unfreeze\.params: 'gradual' is no function"),
    ],
)
def test_wrong_parameters_are_named(
    function: Callable[..., Any], params: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_params(function, params, num_positional=2, setting="unfreeze.params")


def test_the_number_of_given_arguments_counts_from_the_left() -> None:
    check_params(schedule, {"num_groups": 3, "every": 1}, num_positional=1, setting="s")
    with pytest.raises(ConfigError, match="parameter 'num_groups' is required"):
        check_params(schedule, {"every": 1}, num_positional=1, setting="s")
