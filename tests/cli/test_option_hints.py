"""Options that a command does not have: the config key or the command that is meant."""

import pytest

from finetune.cli.options.option_hints import find_keys, suggest_for_option
from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("fit", "photos", "--group-by", "x"), "write data.group_by=VALUE."),
        (("fit", "photos", "--data-group-by", "x"), "write data.group_by=VALUE."),
        (("tune", "photos", "--label-smoothing", "0.1"), "write loss.label_smoothing=VALUE."),
        (("submit", "photos", "--group-by", "x"), "write data.group_by=VALUE."),
        (("evaluate", "runs/a", "--folds", "3"), "It is an option of finetune fit."),
        (("fit", "photos", "--search", "x"), "It is an option of finetune tune."),
    ],
)
def test_unknown_option_has_a_hint(cli: Cli, args: tuple[str, ...], hint: str) -> None:
    assert hint in cli.fails(*args, code=2)


def test_unknown_option_without_a_meaning_has_no_hint(cli: Cli) -> None:
    message = " ".join(cli.fails("fit", "photos", "--zzzz", "1", code=2).split())
    assert message == "error: No such option: --zzzz. See: finetune fit --help"


def test_hint_names_several_commands_with_commas() -> None:
    options = {name: {"--json"} for name in ("fit", "tune", "push")}
    hint = suggest_for_option("--json", "serve", options)
    assert hint == " It is an option of finetune fit, finetune push and finetune tune."


def test_keys_of_an_option_end_in_its_name() -> None:
    assert find_keys("--drop-rate") == ["model.drop_rate"]
    assert len(find_keys("--enabled")) > 1
    assert find_keys("--eopchs") == []
