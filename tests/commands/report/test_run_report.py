"""Tests of reports of run folders: at the end of a fit, of old and damaged runs, of bundles."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import finetune
from finetune.commands.fit.fit import FitResult, fit
from finetune.commands.report.collect import read_facts
from finetune.commands.report.report import report
from finetune.commands.report.run_session import describe_command
from finetune.errors import RunFolderError, StorageError
from finetune.models.backbone import create_network
from finetune.report.sections.reproduce_section import build_reproduce
from finetune.report.sections.training.plan_section import build_plan_section
from tests.support.helpers import ROOT, RecordingReporter
from tests.support.runs import create_small_config, write_photos

OLD_RUN = ROOT / "tests" / "files" / "run_0_1_0"


def create_config(animals: Path, output: Path, **assignments: object) -> finetune.Config:
    """Return the config of a run of one epoch."""
    given = {"report__enabled": "on", "trainer__epochs": 1, **assignments}
    return create_small_config(data__path=str(animals), output=str(output), **given)


def test_fit_writes_report_and_session(trained: FitResult) -> None:
    page = (trained.run_dir / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "bée" in page
    sessions = json.loads((trained.run_dir / "sessions.json").read_text())["sessions"]
    assert len(sessions) == 1
    session = sessions[0]
    assert sum(session["stages"].values()) == pytest.approx(session["seconds"], abs=0.01)
    assert session["seconds"] <= trained.seconds
    network = create_network("resnet10t", num_classes=3, weights="random").module
    assert session["num_parameters"] == sum(one.numel() for one in network.parameters())
    facts = read_facts(trained.run_dir)
    reproduce = build_reproduce(facts)
    assert [name for name, _ in reproduce.versions][:2] == ["python", "finetune"]
    plan = build_plan_section(facts)
    assert plan is not None
    assert [(phase.epochs, phase.num_groups) for phase in plan.phases] == [("1", 1), ("2", 6)]
    reasons = {setting.key: setting.reason for setting in plan.recipe}
    assert reasons["trainer.monitor"]  # chosen by a rule


def test_fit_without_report_writes_none(animals: Path, tmp_path: Path) -> None:
    result = fit(create_config(animals, tmp_path / "run", report__enabled="off"))
    assert not (result.run_dir / "report.html").exists()
    assert (result.run_dir / "sessions.json").is_file()


def test_fit_with_failing_report_finishes_and_names_the_command(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no template")

    monkeypatch.setattr("finetune.commands.report.report.render_report", fail)
    reporter = RecordingReporter()
    result = fit(create_config(animals, tmp_path / "run"), reporter=reporter)
    assert (result.run_dir / "bundle" / "finetune.json").is_file()
    assert (result.run_dir / ".done").is_file()
    [warning] = [text for text in reporter.warnings if "report" in text]
    assert "no template" in warning
    assert warning.endswith(f"finetune report {result.run_dir}")


def test_report_of_run_of_version_0_1_has_what_it_has(tmp_path: Path) -> None:
    result = report([OLD_RUN], output=tmp_path / "page.html")
    page = result.output.read_text(encoding="utf-8")
    assert result.num_bytes == len(page.encode())
    present = ("diagnosis", "data", "plan", "curves", "metrics", "classes", "reproduce")
    assert [name for name in present if f'<section id="{name}"' not in page] == []
    absent = ("confusion", "network", "folds")
    assert [name for name in absent if f'<section id="{name}"' in page] == []
    assert "cannot be compared with the validation loss" in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "epoch,val/loss\none,two\n"),
        ("audit.json", "{"),
        ("audit.json", '{"version": 99}'),
        ("measured.json", "[]"),
        ("diagnosis.json", '{"findings": 3}'),
        ("network.json", "[1]"),
        ("sessions.json", '{"sessions": [1, 2]}'),
        ("rejected.csv", "a,b\n1,2\n"),
        ("val_predictions.npz", "no archive"),
        ("cross_validation.json", "null"),
    ],
)
def test_report_leaves_out_a_damaged_file(
    name: str, content: str, trained: FitResult, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ignore = shutil.ignore_patterns("checkpoints", "*.safetensors")
    shutil.copytree(trained.run_dir, run, ignore=ignore)
    (run / name).write_text(content)
    page = report([run]).output.read_text(encoding="utf-8")
    assert '<section id="headline"' in page
    assert '<section id="metrics"' in page


def test_report_leaves_out_predictions_of_other_images(trained: FitResult, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.run_dir, run, ignore=shutil.ignore_patterns("checkpoints"))
    np.savez(run / "test_predictions.npz", probabilities=np.full((2, 3), 1 / 3))
    assert "test" not in read_facts(run).predictions


def test_report_of_unfinished_run_says_so(trained: FitResult, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ignore = shutil.ignore_patterns("bundle", "*.npz", "checkpoints")
    shutil.copytree(trained.run_dir, run, ignore=ignore)
    page = report([run]).output.read_text(encoding="utf-8")
    assert "The run is not finished" in page
    assert '<section id="curves"' in page


def test_report_of_bundle_has_metrics_and_no_data(trained: FitResult, tmp_path: Path) -> None:
    page = report([trained.run_dir / "bundle"], output=tmp_path / "page.html").output.read_text()
    assert '<section id="metrics"' in page
    assert '<section id="data"' not in page
    assert "--config" not in page.partition('<section id="reproduce"')[2]


def test_report_of_another_folder_fails(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="neither a run folder"):
        report([tmp_path])
    with pytest.raises(RunFolderError, match="does not exist"):
        report([tmp_path / "none"])
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"finetune report .*trials/\*"):
        report([tmp_path])


def test_report_does_not_replace_a_folder(trained: FitResult, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="it is a folder"):
        report([trained.run_dir], output=tmp_path)


def test_describe_command_quotes_words_and_skips_other_programs() -> None:
    assert describe_command(["/usr/bin/finetune", "fit", "my photos"]) == (
        "finetune fit 'my photos'"
    )
    assert describe_command(["/x/finetune/__main__.py", "fit"]) == "finetune fit"
    assert describe_command(["/usr/bin/pytest", "tests"]) == ""
    assert describe_command([]) == ""


@pytest.mark.slow
def test_cross_validation_writes_one_report_with_folds(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", num_train=6)
    shutil.rmtree(photos / "val")
    run = fit(
        create_config(photos / "train", tmp_path / "run", cross_validation__num_folds=3)
    ).run_dir
    page = (run / "report.html").read_text(encoding="utf-8")
    assert not (run / "folds" / "1" / "report.html").exists()
    assert '<section id="folds"' in page
    assert '<section id="confusion"' in page
    facts = read_facts(run)
    assert len(facts.predictions["out_of_fold"].paths) == 18
    assert sorted(facts.fold_rows) == [1, 2, 3]
