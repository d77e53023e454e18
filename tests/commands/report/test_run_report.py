"""Tests of reports of run folders: at the end of a fit, of old and damaged runs, of bundles."""

import importlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finetune
from finetune.commands.fit.fit import FitResult, fit
from finetune.commands.report.collect import read_facts
from finetune.commands.report.report import report
from finetune.commands.report.run_session import describe_command, read_sessions
from finetune.errors import RunFolderError, StorageError
from finetune.models.backbone import create_network
from finetune.report.sections.evaluation.folds_section import build_folds
from finetune.report.sections.evaluation.metrics_section import build_metrics
from finetune.report.sections.headline import build_headline
from finetune.report.sections.reproduce_section import build_reproduce
from finetune.report.sections.training.plan_section import build_plan_section
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter
from finetune.units import format_duration
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
    assert list(session["stages"]) == [
        "preparation", "settings and linear probe", "epochs", "evaluation and bundle", "report",
    ]  # fmt: skip
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


@pytest.mark.runs
def test_session_has_the_time_of_each_stage_from_the_start_of_the_fit(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_down(name: str) -> None:
        module, _, function = name.rpartition(".")
        original = getattr(importlib.import_module(module), function)

        def call(*arguments: Any, **named: Any) -> Any:
            time.sleep(0.5)
            return original(*arguments, **named)

        monkeypatch.setattr(name, call)

    slow_down("finetune.commands.fit.single_run.prepare_run")
    slow_down("finetune.commands.fit.train.settle_learning_rate")
    slow_down("finetune.commands.fit.train.fit_epochs")
    slow_down("finetune.commands.fit.train.evaluate_best_model")
    config = create_config(animals, tmp_path / "run", report__enabled="off")
    [session] = read_sessions(RunFolder(fit(config).run_dir))
    stages = session["stages"]
    names = ("preparation", "settings and linear probe", "epochs", "evaluation and bundle")
    assert [name for name in names if stages[name] < 0.5] == []
    assert session["seconds"] >= 2


@pytest.mark.runs
def test_resumed_run_has_the_sessions_command_and_reasons_of_its_first_process(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopper(Reporter):
        def start(self, task: str, total: int) -> None:
            if task == "epoch 2/3":
                raise KeyboardInterrupt

    command = ["/usr/bin/finetune", "fit", str(animals)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(KeyboardInterrupt):
        fit(create_config(animals, tmp_path / "run", trainer__epochs=3), reporter=Stopper())
    [first] = read_sessions(RunFolder(tmp_path / "run"))
    assert first["stages"]["epochs"] > 0
    monkeypatch.setattr("sys.argv", ["/usr/bin/finetune", "fit", "--resume", "run"])
    finetune.resume(tmp_path / "run")
    facts = read_facts(tmp_path / "run")
    assert len(facts.sessions) == 2
    assert facts.sessions[0] == first
    section = build_reproduce(facts)
    assert section.commands[0][1] == f"finetune fit {animals}"
    assert dict(section.figures)["Sessions"].startswith("2 ")
    total = sum(session["seconds"] for session in facts.sessions)
    assert dict(section.figures)["Total time"] == format_duration(total)
    plan = build_plan_section(facts)
    assert plan is not None
    assert {setting.key: setting.reason for setting in plan.recipe}["trainer.monitor"]


@pytest.mark.runs
def test_fit_whose_session_cannot_be_written_finishes(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, text: str) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr("finetune.commands.report.run_session.write_text", fail)
    reporter = RecordingReporter()
    config = create_config(animals, tmp_path / "run", report__enabled="off")
    assert (fit(config, reporter=reporter).run_dir / ".done").is_file()
    assert [text for text in reporter.warnings if "The disk is full" in text] == [
        "Times and hardware of the run are not recorded: The disk is full."
    ]


@pytest.mark.runs
def test_fit_without_report_writes_none(animals: Path, tmp_path: Path) -> None:
    result = fit(create_config(animals, tmp_path / "run", report__enabled="off"))
    assert not (result.run_dir / "report.html").exists()
    assert (result.run_dir / "sessions.json").is_file()


@pytest.mark.runs
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
        ("network.json", '{"after": 3}'),
        ("network.json", '{"after": {"layers": [{"units": 3}, 4]}, "num_images": "x"}'),
        ("sessions.json", '{"sessions": [{"stages": 3, "seconds": "x", "reasons": [1]}]}'),
        ("sessions.json", '{"sessions": [{"stages": {"epochs": "x"}, "versions": {"a": {}}}]}'),
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


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99])
def test_report_leaves_out_truncated_predictions(
    fraction: float, trained: FitResult, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.run_dir, run, ignore=shutil.ignore_patterns("checkpoints", "bundle"))
    file = run / "val_predictions.npz"
    assert "val" in read_facts(run).predictions
    content = file.read_bytes()
    file.write_bytes(content[: int(fraction * len(content))])
    assert "val" not in read_facts(run).predictions
    assert report([run], photo_seconds=0).output.is_file()


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
    # the score is not one of the ensemble, and has one interval
    headline = build_headline(facts)
    assert "networks of 3 folds" in headline.sentence
    assert "the ensemble itself is not measured" in headline.sentence
    folds, measured = build_folds(facts), build_metrics(facts)
    assert folds is not None
    assert measured is not None
    [interval] = [row[3] for row in folds.summary if row[0] == "Accuracy"]
    metrics = dict(measured.table.rows)
    assert [cell.interval for cell in metrics["Accuracy"]] == [interval]
    assert [cell.interval for cell in metrics["Macro F1"]] == [""]
    assert interval in headline.figures[0].remark
    # what only the folds record
    assert "Parameters" in [figure.label for figure in headline.figures]
    section = build_reproduce(facts)
    assert dict(section.hardware)["Device"]
    assert "Epochs" in dict(section.stages)
    assert "Sessions" not in dict(section.figures)
    assert dict(section.commands)["Evaluate"].endswith(" OTHER_PHOTOS")
    plan = build_plan_section(facts)
    assert plan is not None
    assert dict(plan.network)["Input"].startswith("32")
    assert {setting.key: setting.reason for setting in plan.recipe}["trainer.monitor"]
    assert read_facts(run / "folds" / "1").name == "run, fold 1"
