"""Tests of the command ``report``, and of the switch of ``fit`` and ``submit`` for it."""

import json
from pathlib import Path

import pytest

from finetune.commands.fit.fit import FitResult
from tests.cli.conftest import SMALL, Cli
from tests.support.helpers import run_python


def test_report_prints_the_page_and_its_size(cli: Cli, trained: FitResult, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    output = cli.ok("report", trained.run_dir, "--output", page)
    assert output.words.startswith(f"Report written to {page} (")
    tree = cli.ok("report", trained.run_dir, "--output", page, "--json").json
    assert tree == {
        "output": str(page),
        "num_bytes": page.stat().st_size,
        "runs": [str(trained.run_dir)],
    }


def test_report_is_about_the_split_that_is_chosen(
    cli: Cli, trained: FitResult, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    for split, words in (("val", "validation images correctly"), ("test", "test images correctly")):
        cli.ok("report", trained.run_dir, "--output", page, "--split", split)
        text = page.read_text(encoding="utf-8")
        assert f"{trained.metrics[split]['macro_f1']:.1%}" in text.partition("<dl")[2]
        assert words.split()[0] in text.partition('class="lead">')[2].partition("</p>")[0]
    assert "unknown split" in cli.fails("report", trained.run_dir, "--split", "train", code=2)


def test_report_of_a_folder_without_run_fails(cli: Cli, tmp_path: Path) -> None:
    assert "neither a run folder" in cli.fails("report", tmp_path, code=5)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["report", "no/such/run"], 5),
        (["report", "."], 5),
        (["fit", ".", "--weights", "no/such/folder"], 4),
        (["fit", ".", "--weights", "."], 4),
    ],
    ids=str,
)
def test_paths_that_are_no_runs_or_weights_fail_before_torch_is_imported(
    args: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = """
import json, sys
from finetune.cli.main import run
code = run(json.loads(sys.argv[1]))
print()
print(json.dumps([code, "torch" in sys.modules]))
"""
    last = run_python(program, json.dumps(args)).splitlines()[-1]
    assert json.loads(last) == [code, False]


def test_fit_names_its_report_unless_it_is_switched_off(
    cli: Cli, photos: Path, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert f"Report: {run}/report.html" in cli.ok("fit", photos, *SMALL, "--output", run).out
    output = cli.ok("fit", photos, *SMALL, "--no-report", "--output", other)
    assert "Report:" not in output.out
    assert not (other / "report.html").exists()


def test_submit_passes_the_switch_on(cli: Cli, photos: Path, tmp_path: Path) -> None:
    words = ("submit", photos, "--dry-run", "--output", tmp_path / "run")
    assert "--no-report" not in cli.ok(*words).out
    assert "--no-report" in cli.ok(*words, "--no-report").out
