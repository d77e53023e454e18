"""Tests of ``finetune.commands.tune.space.conditional_keys``."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.tune.space.conditional_keys import CONDITIONS, select_applicable
from finetune.commands.tune.space.search_space import parse_search_options
from finetune.commands.tune.space.space_validation import validate_space
from finetune.commands.tune.trials.trial_queue import TrialQueue
from finetune.config.load import build_config, replace_values
from finetune.errors import ConfigError

HEADS = ["model.head=linear,mlp", "model.head_params.hidden=[64],[256]"]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"model.head": "linear", "model.head_params.hidden": [64]}, {"model.head"}),
        ({"model.head": "mlp", "model.head_params.hidden": [64]}, None),
        ({"model.head_params.hidden": [64]}, None),
        ({"optim.name": "adam", "optim.momentum": 0.9, "optim.nesterov": "on"}, {"optim.name"}),
        ({"optim.name": "rmsprop", "optim.momentum": 0.9}, None),
        ({"optim.name": "adam", "optim.params.rho": 0.9}, {"optim.name"}),
        ({"optim.name": "adadelta", "optim.params.rho": 0.9}, None),
        ({"lr_schedule.name": "step", "lr_schedule.final_factor": 0.1}, {"lr_schedule.name"}),
        ({"lr_schedule.name": "step", "lr_schedule.params.gamma": 0.1}, None),
        ({"lr_schedule.name": "cosine", "lr_schedule.params.gamma": 0.1}, {"lr_schedule.name"}),
        ({"loss.name": "cross_entropy", "loss.params.gamma": 2}, {"loss.name"}),
        ({"loss.name": "mine:loss", "loss.params.gamma": 2}, None),
    ],
)
def test_values_that_cannot_apply_are_left_out(values: dict[str, Any], kept: set[str]) -> None:
    assert select_applicable(values).keys() == (values.keys() if kept is None else kept)


def test_conditions_name_keys_of_the_config() -> None:
    for prefix, (name, accepted) in CONDITIONS.items():
        for value in accepted:
            build_config({}, assignments={name: value})
        section, _, field = prefix.partition(".")
        assert hasattr(getattr(build_config({}), section), field)


def test_space_of_heads_is_valid_together_and_its_widths_alone_are_not() -> None:
    space, _ = parse_search_options(HEADS)
    validate_space(space, build_config({}))
    with pytest.raises(ConfigError, match=r"head_params cannot apply to model\.head=linear"):
        validate_space(space[1:], build_config({}))


@pytest.mark.runs
def test_trials_of_one_linear_head_have_no_widths(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space, _ = parse_search_options(HEADS)
    config = build_config({})
    with closing(TrialQueue(tmp_path, space, maximize=False, seed=0)) as queue:
        queue.enqueue_default({"model.head": "linear", "model.head_params.hidden": None})
        drawn = []
        while (claimed := queue.claim(8)) is not None:
            drawn.append(dict(claimed.values))
            replace_values(config, claimed.values)  # raises if they cannot be combined
            queue.finish(claimed, value=1.0)
    assert drawn[0] == {"model.head": "linear"}
    assert {len(values) for values in drawn} == {1, 2}
    assert all((len(values) == 2) == (values["model.head"] == "mlp") for values in drawn)
