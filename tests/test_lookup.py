"""Tests of lookup by name, suggestions and parameter checks."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import ConfigError
from finetune.lookup import check_params, look_up, suggest_name, suggest_path

TABLE = {"gradual": 1, "all": 2}


def test_suggest_name_gives_closest_else_short_list() -> None:
    assert suggest_name("gradul", TABLE) == " Did you mean 'gradual'?"
    assert suggest_name("zzz", TABLE) == " Known: all, gradual."
    assert suggest_name("zzz", [f"name{i}" for i in range(13)]) == suggest_name("zzz", []) == ""


def test_suggest_path_gives_the_whole_path_of_the_closest_entry(tmp_path: Path) -> None:
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    assert suggest_path(tmp_path / "runs/latst") == f" Did you mean '{tmp_path}/runs/latest'?"
    (tmp_path / "runs/broken").symlink_to("gone")
    assert suggest_path(tmp_path / "runs/broken") == ""
    assert suggest_path(tmp_path / "runs/other") == suggest_path(tmp_path / "rns/latest") == ""


def test_look_up_accepts_table_name_and_import_path() -> None:
    assert look_up(TABLE, "all", setting="s") == 2
    assert look_up(TABLE, "math:sqrt", setting="s") is math.sqrt


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gradul", r"unfreeze\.name.*'gradul'.*'gradual'"),
        ("no_such_pkg.mod:f", r"unfreeze\.name=no_such_pkg\.mod:f.*'no_such_pkg\.mod'"),
        ("math:sqrtt", r"unfreeze\.name.*'math'.*'sqrtt'.*'sqrt'"),
        ("math:", "'math:' names no function"),
        (":f", r"unfreeze\.name: ':f' names no module"),
        ("math:sqrt:x", "'math:sqrt:x' has two colons"),
        ("code/mine.py:f", "Name the module, not its file, as in code.mine:f"),
        (".relative:f", r"'\.relative'"),
    ],
)
def test_look_up_unknown_name_raises_config_error_with_setting_and_name(
    name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        look_up(TABLE, name, setting="unfreeze.name")


def schedule(epoch: int, num_groups: int, *, every: int, step: float = 1.0) -> None:
    """Accept two positional arguments from the caller and two parameters."""


def optional_rest(epoch: int, num_groups: int, *rest: int) -> None:
    """Accept optional positional arguments, but no parameter."""


def other_names(when: int, size: int, *, every: int) -> None:
    """Accept positional arguments under names of its own, as a user's function may."""


def open_ended(epoch: int, num_groups: int, *, every: int, **more: float) -> None:
    """Accept any keyword."""


@pytest.mark.parametrize(
    ("function", "params"),
    [
        (schedule, {"every": 2}),
        (schedule, {"every": 2, "step": 3.0}),
        (optional_rest, {}),
        (other_names, {"every": 2}),
        (open_ended, {"every": 2, "unheard_of": 1.0}),
    ],
)
def test_check_params_complete_parameters_pass(
    function: Callable[..., Any], params: Mapping[str, Any]
) -> None:
    check_params(function, params, num_positional=2, setting="s")


@pytest.mark.parametrize(
    ("function", "params", "message"),
    [
        (schedule, {"evry": 2}, r"unfreeze\.params.*'evry'.*'every'"),
        (schedule, {"step": 2}, r"unfreeze\.params.*'every'"),
        (schedule, {"every": 1, "epoch": 2}, "'epoch'"),
        (optional_rest, {"every": 1}, r"unfreeze\.params.*'every'"),
        (open_ended, {"unheard_of": 1.0}, "'every'"),
        (None, {}, r"unfreeze\.params.*None"),
        ("gradual", {}, r"unfreeze\.params.*'gradual'"),
    ],
)
def test_check_params_wrong_parameter_raises_config_error_with_its_name(
    function: Callable[..., Any], params: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_params(function, params, num_positional=2, setting="unfreeze.params")


def test_check_params_num_positional_counts_from_the_left() -> None:
    check_params(schedule, {"num_groups": 3, "every": 1}, num_positional=1, setting="s")
    with pytest.raises(ConfigError, match="'num_groups'"):
        check_params(schedule, {"every": 1}, num_positional=1, setting="s")
