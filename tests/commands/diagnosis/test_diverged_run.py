"""End of a run that diverges: findings on the disk, in the error and in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.commands.report.report import report
from finetune.diagnosis.divergence_error import DivergenceError
from tests.support.runs import create_small_config

pytestmark = pytest.mark.runs


def fit_until_divergence(root: Path, output: Path, **settings: Any) -> DivergenceError:
    """Fit at a rate that no network survives, and return the error."""
    values = {
        "optim__name": "sgd", "optim__lr": 100, "optim__backbone_lr_scale": 10,
        "trainer__gradient_clip_val": 0, "lr_schedule__warmup_fraction": 0.0,
        "unfreeze__name": "all", "trainer__epochs": 4,
    }  # fmt: skip
    config = create_small_config(data__path=str(root), output=str(output), **{**values, **settings})
    with pytest.raises(DivergenceError) as caught:
        finetune.fit(config)
    return caught.value


def read_findings(run: Path) -> list[dict[str, Any]]:
    tree = json.loads((run / "diagnosis.json").read_text(encoding="utf-8"))
    findings: list[dict[str, Any]] = tree["findings"]
    return findings


@pytest.fixture(scope="module")
def diverged(
    animals: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DivergenceError]:
    """Return a run that diverged, and its error; never change it."""
    run = tmp_path_factory.mktemp("diverged") / "run"
    return run, fit_until_divergence(animals, run, report__enabled="on")


def test_diverged_run_has_a_diagnosis_that_its_error_names(
    diverged: tuple[Path, DivergenceError],
) -> None:
    run, error = diverged
    (finding,) = (one for one in read_findings(run) if one["rule"] == "diverged")

    assert error.exit_code == 7
    assert finding["severity"] == "problem"
    assert finding["numbers"]["epoch"] == error.divergence.epoch
    assert finding["option"].startswith("optim.lr=")
    assert finding["title"] in str(error)
    assert finding["option"] in str(error)
    assert str(run / "report.html") in str(error)


def test_report_of_a_diverged_run_shows_its_diagnosis(
    diverged: tuple[Path, DivergenceError], tmp_path: Path
) -> None:
    run, _ = diverged
    option = next(one["option"] for one in read_findings(run) if one["rule"] == "diverged")
    report([run], output=tmp_path / "page.html")
    for page in (run / "report.html", tmp_path / "page.html"):
        text = page.read_text(encoding="utf-8")
        assert "Learning rate too high" in text
        assert option in text


def test_fold_that_diverges_is_diagnosed_with_its_cross_validation(
    animals: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {"cross_validation__num_folds": 2}
    error = fit_until_divergence(animals, run, **settings)

    for folder in (run, run / "folds" / "1"):
        assert "diverged" in {one["rule"] for one in read_findings(folder)}
    assert read_findings(run)[0]["title"].endswith("(fold 1)")
    assert not (run / "report.html").exists()
    assert f"finetune report {run}" in str(error)


def test_run_that_is_resumed_loses_the_findings_of_its_divergence(
    animals: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fit_until_divergence(animals, run, probe__enabled="off")
    assert "diverged" in {one["rule"] for one in read_findings(run)}
    finetune.resume(run, assignments={"optim.lr": 0.001})

    assert "diverged" not in {one["rule"] for one in read_findings(run)}
