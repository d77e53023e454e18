"""Tests of early stopping: what it counts from, and what a run says of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.bundle.model_card import read_card_json
from finetune.commands.fit.fit import FitResult
from tests.support.helpers import RecordingReporter
from tests.support.runs import create_small_config, load_checkpoint, read_rows, write_weights
from tests.support.wandb_file import read_offline_runs

pytestmark = pytest.mark.runs

NUM_EPOCHS = 6


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


def fit(
    photos: Path, output: Path, pretrained: Path, **more: Any
) -> tuple[FitResult, RecordingReporter]:
    """Run a training whose epochs are worse than its linear probe, at a much too high rate."""
    settings: dict[str, Any] = {
        "data__path": str(photos),
        "output": str(output),
        "model__weights": str(pretrained),
        "unfreeze__name": "all",
        "optim__lr": 0.1,
        "optim__backbone_lr_scale": 1.0,
        "trainer__epochs": NUM_EPOCHS,
        "trainer__monitor": "loss",
        "trainer__early_stopping_patience": 1,
    }
    reporter = RecordingReporter()
    result: FitResult = finetune.fit(create_small_config(**{**settings, **more}), reporter=reporter)
    return result, reporter


@pytest.fixture(scope="module")
def stopped(
    animals: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FitResult, RecordingReporter]:
    """Return a run that stopped after its first epoch; never change it."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    return fit(animals, run, pretrained, tracking__wandb="offline")


def test_first_epoch_that_is_worse_than_the_probe_exhausts_a_patience_of_1(
    stopped: tuple[FitResult, RecordingReporter],
) -> None:
    result, _ = stopped
    rows = read_rows(result.run_dir)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert float(rows[1]["val/loss"]) > float(rows[0]["val/loss"])
    # the bundle's model is that of the probe
    assert load_checkpoint(result.run_dir, "best").keys() >= {"probe"}


def test_stop_is_told_in_notes_result_card_and_wandb(
    stopped: tuple[FitResult, RecordingReporter],
) -> None:
    result, reporter = stopped
    probe_loss = float(read_rows(result.run_dir)[0]["val/loss"])
    (note,) = [note for note in reporter.notes if note.startswith("Stopped")]
    assert note == (
        f"Stopped after epoch 1 of 6: no better val/loss for 1 epoch (best: {probe_loss:.4f}, "
        f"linear probe)."
    )
    stop = result.to_json()["early_stop"]
    assert stop == {
        "epoch": 1,
        "num_epochs": 6,
        "monitor": "val/loss",
        "reason": "no_improvement",
        "num_epochs_without_improvement": 1,
        "best_epoch": 0,
        "best_score": pytest.approx(probe_loss),
    }
    assert read_card_json(result.run_dir / "bundle")["facts"]["early_stop"] == stop
    (part,) = read_offline_runs(result.run_dir)
    assert {name: part.summary[f"early_stop/{name}"] for name in stop} == stop


def test_run_that_reaches_its_last_epoch_has_not_stopped_early(
    animals: Path, pretrained: Path, tmp_path: Path
) -> None:
    # the patience is exhausted by the last epoch
    result, reporter = fit(animals, tmp_path / "run", pretrained, trainer__epochs=1)
    assert result.to_json()["early_stop"] is None
    assert not [note for note in reporter.notes if note.startswith("Stopped")]


def test_epochs_are_counted_from_the_probe_across_an_interruption(
    animals: Path, pretrained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fit(animals, run, pretrained, trainer__epochs=1, trainer__early_stopping_patience=3)
    reporter = RecordingReporter()
    result = finetune.resume(run, assignments={"trainer.epochs": NUM_EPOCHS}, reporter=reporter)
    assert [row["epoch"] for row in read_rows(run)] == ["0", "1", "2", "3"]
    assert any(
        note.startswith("Stopped after epoch 3 of 6: no better val/loss for 3 epochs")
        for note in reporter.notes
    )
    assert result.early_stop is not None
    assert result.early_stop["best_epoch"] == 0


def test_resume_of_a_stopped_run_tells_the_reason_and_a_larger_patience_trains_on(
    animals: Path, pretrained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fit(animals, run, pretrained)
    reporter = RecordingReporter()
    result = finetune.resume(run, reporter=reporter)
    (note,) = reporter.notes
    assert "Stopped after epoch 1 of 6" in note
    assert "trainer.early_stopping_patience" in note
    assert result.early_stop is not None
    finetune.resume(run, assignments={"trainer.early_stopping_patience": 2})
    assert [row["epoch"] for row in read_rows(run)] == ["0", "1", "2"]


def test_early_stopping_switched_on_at_resume_knows_the_best_model(
    animals: Path, pretrained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fit(animals, run, pretrained, trainer__epochs=1, trainer__early_stopping_patience=None)
    probe_loss = float(read_rows(run)[0]["val/loss"])
    changes = {"trainer.epochs": NUM_EPOCHS, "trainer.early_stopping_patience": 2}
    result = finetune.resume(run, assignments=changes)
    assert result.early_stop is not None
    assert result.early_stop["epoch"] == result.early_stop["num_epochs_without_improvement"] == 2
    assert result.early_stop["best_score"] == pytest.approx(probe_loss)
    assert result.early_stop["best_epoch"] == 0
    assert load_checkpoint(run, "best").keys() >= {"probe"}


def test_metric_that_is_not_finite_is_the_reason_told(
    animals: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training.module import ClassificationModule

    log_dict = ClassificationModule.log_dict

    def log_nan(self: ClassificationModule, values: dict[str, Any], **options: Any) -> None:
        nan = {name: math.nan for name in values if name == "val/loss"}
        log_dict(self, {**values, **nan}, **options)

    monkeypatch.setattr(ClassificationModule, "log_dict", log_nan)
    result, reporter = fit(
        animals, tmp_path / "run", pretrained, probe__enabled="off", optim__lr=1e-3
    )
    assert "Stopped after epoch 1 of 6: val/loss is not finite." in reporter.notes
    assert result.early_stop is not None
    assert result.early_stop["reason"] == "not_finite"
    assert result.early_stop["best_epoch"] is result.early_stop["best_score"] is None


@pytest.mark.slow
def test_two_ranks_stop_after_the_same_epoch(
    animals: Path, pretrained: Path, tmp_path: Path
) -> None:
    result, reporter = fit(animals, tmp_path / "run", pretrained, trainer__devices=2)
    assert [row["epoch"] for row in read_rows(result.run_dir)] == ["0", "1"]
    assert len([note for note in reporter.notes if note.startswith("Stopped")]) == 1
