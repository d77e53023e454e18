"""Tests of ``finetune fit --lr-find`` on the command line."""

import json
import shlex
from pathlib import Path

import pytest

from finetune.errors import ConfigError
from tests.cli.conftest import SMALL, Cli


@pytest.mark.runs
def test_fit_lr_find_prints_a_curve_and_the_next_command(
    cli: Cli, animals: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    output = cli.ok("fit", animals, *SMALL, "--lr-find", "--output", run_dir)
    curve = output.out[output.out.index("loss    · of a batch") :]
    assert max(map(len, curve[: curve.index("The run takes")].splitlines())) <= 80
    assert shlex.join(["finetune", "fit", "--resume", str(run_dir)]) in output.out
    assert (run_dir / "lr_find.svg").is_file()


@pytest.mark.runs
def test_fit_lr_find_as_json_has_the_points(cli: Cli, animals: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    tree = cli.ok("fit", animals, *SMALL, "--lr-find", "--output", run_dir, "--json").json
    assert json.loads(json.dumps(tree)) == tree
    assert tree["run_dir"] == str(run_dir)
    assert {"lr", "loss", "smoothed_loss"} == set(tree["lr_find"]["points"][0])
    assert [Path(file).name for file in tree["files"]] == ["lr_find.csv", "lr_find.svg"]


@pytest.mark.parametrize(
    "options",
    [
        ("--resume", "run"),
        ("--resume", "auto", "--output", "run"),
        ("--dry-run",),
        ("--unfreeze", "linear_probe"),
    ],
)
def test_fit_lr_find_with_a_contradicting_option_fails(
    options: tuple[str, ...], cli: Cli, animals: Path
) -> None:
    data = () if options == ("--resume", "run") else (animals, *SMALL)
    message = cli.fails("fit", *data, "--lr-find", *options, code=ConfigError.exit_code)
    assert "--lr-find" in message
    assert options[0] in message


def test_submit_rejects_lr_find(cli: Cli, animals: Path) -> None:
    message = cli.fails("submit", animals, "--lr-find", code=ConfigError.exit_code)
    assert "--lr-find" in message
    assert "submit" in message
