"""Tests of a finished cross-validation as a model, and of what its folds report."""

from pathlib import Path

import pytest

import finetune
from finetune.cli.render.console import ConsoleReporter
from finetune.cli.render.fit_result import show_fit
from finetune.commands.cross_validation.fold_reporter import FoldReporter
from finetune.commands.fit.fit import FitResult
from tests.commands.cross_validation.test_cross_validate import build_run_config
from tests.support.helpers import RecordingReporter

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def untested(insects: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a finished cross-validation without test images; never change it."""
    output = tmp_path_factory.mktemp("untested") / "run"
    return finetune.fit(build_run_config(insects, output, cross_validation__num_folds=2))


def test_export_is_verified_on_training_images_where_there_are_no_others(
    untested: FitResult, tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    result = finetune.export(untested.run_dir, tmp_path / "model", reporter=reporter)
    assert result.parity is not None
    assert not [text for text in reporter.warnings if "parity" in text]


def test_evaluation_on_training_images_names_the_held_out_metrics(untested: FitResult) -> None:
    reporter = RecordingReporter()
    result = finetune.evaluate(untested.run_dir, reporter=reporter)
    assert result.num_training_images == 38
    note = next(note for note in reporter.notes if "cross_validation.json" in note)
    assert "out_of_fold.csv" in note
    reporter = RecordingReporter()
    finetune.evaluate(untested.run_dir / "folds" / "1", reporter=reporter)
    assert not [note for note in reporter.notes if "cross_validation.json" in note]


def test_notes_of_folds_are_repeated_and_warnings_are_not() -> None:
    recorder = RecordingReporter()
    seen: set[str] = set()
    for fold in ("1", "2"):
        reporter = FoldReporter(recorder, fold, seen=seen, audit_path=Path(fold, "audit.csv"))
        reporter.note("augment.hflip=on: measured.")
        reporter.warn("slow disk")
        reporter.note(f"2 possible label errors; see {fold}/audit.csv")
    assert recorder.notes == ["augment.hflip=on: measured."] * 2
    assert recorder.warnings == ["slow disk"]


def test_result_of_one_fold_says_how_the_model_is_written(
    untested: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"finetune fit --resume {untested.run_dir}"
    show_fit(ConsoleReporter(), finetune.resume(untested.run_dir / "folds" / "1").to_json())
    assert command in capsys.readouterr().out
    show_fit(ConsoleReporter(), untested.to_json())
    assert command not in capsys.readouterr().out
