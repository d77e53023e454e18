"""Tests of the network that is trained on all images with what the folds found."""

import csv
import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

import finetune
from finetune.bundle.bundle import load_model
from finetune.commands.cross_validation.refit import choose_measured, choose_refit
from finetune.commands.fit.fit import FitResult
from finetune.commands.measurement.interpolation import interpolate_weights
from finetune.config.load import build_config, read_config_file
from tests.support.helpers import RecordingReporter
from tests.support.runs import load_weights, read_rows, write_weights


@pytest.fixture(scope="module")
def refitted(insects: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a cross-validation of two folds with a refitted network; never change it."""
    folder = tmp_path_factory.mktemp("refit")
    tree = {
        "data": {"path": str(insects), "image_size": 32, "num_workers": 0, "test_fraction": 0.2},
        "model": {
            "backbone": "test_resnet",
            "weights": str(write_weights(folder / "weights.pth")),
        },
        "augment": {"name": "none"},
        "trainer": {"epochs": 2, "batch_size": 8, "accelerator": "cpu", "precision": "32-true"},
        "cross_validation": {"num_folds": 2, "final": "refit"},
        "output": str(folder / "run"),
    }
    return finetune.fit(build_config(tree))


def test_network_trains_on_all_images_with_the_medians_of_the_folds(refitted: FitResult) -> None:
    run = refitted.run_dir / "refit"
    with (run / "manifest.csv").open() as stream:
        splits = [row["split"] for row in csv.DictReader(stream)]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (31, 0, 7)
    assert refitted.cross_validation is not None
    folds = refitted.cross_validation["folds"]
    rates = [fold["measured"]["optim.lr"] for fold in folds]
    assert read_config_file(run / "config.yaml")["optim"]["lr"] == pytest.approx(median(rates))
    rows = read_rows(run)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert not [name for row in rows for name in row if name.startswith("val/")]


def test_weights_are_at_the_position_of_the_folds_on_the_line(refitted: FitResult) -> None:
    run = refitted.run_dir / "refit"
    choice = json.loads((run / "refit.json").read_text())
    shipped = load_model(refitted.run_dir).network.state_dict()
    prefix = "classifier.network."

    def load(name: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): value for key, value in load_weights(run, name).items()}

    if choice["position"] in (0, None, 1):
        expected = load("best")
    else:
        expected = interpolate_weights(load("start"), load("last"), choice["position"])
    for key, value in expected.items():
        assert torch.equal(shipped[key], value), key
    assert load_model(refitted.run_dir).card.temperature == choice["temperature"]


def test_expected_numbers_are_those_of_the_folds(refitted: FitResult) -> None:
    facts = load_model(refitted.run_dir).card.facts
    assert facts["metrics"].keys() == {"out_of_fold", "test"}
    assert facts["cross_validation"]["final"]["kind"] == "refit"
    summary = json.loads((refitted.run_dir / "cross_validation.json").read_text())
    assert facts["cross_validation"]["metrics"] == summary["metrics"]
    evaluated = finetune.evaluate(refitted.run_dir)
    expected = facts["metrics"]["test"]["accuracy"]
    assert evaluated.evaluation.metrics["accuracy"] == pytest.approx(expected)


def test_network_is_not_trained_again_unless_the_folds_choose_anew(refitted: FitResult) -> None:
    weights = refitted.run_dir / "refit" / "checkpoints" / "last.ckpt"
    before = weights.stat().st_mtime_ns
    reporter = RecordingReporter()
    result = finetune.resume(refitted.run_dir, reporter=reporter)
    assert weights.stat().st_mtime_ns == before
    assert result.cross_validation == refitted.cross_validation
    assert not [note for note in reporter.notes if "The run is complete" in note]


def build_fold(epoch: int, position: float | None, **more: Any) -> dict[str, Any]:
    fold = {"kept": {"epoch": epoch, "position": position}, "temperature": 1.0, "measured": {}}
    return {**fold, "prior_strength": None, **more}


def test_choice_is_the_median_of_the_larger_part_of_the_folds() -> None:
    on_line = [build_fold(10, 0.5), build_fold(10, 0.75), build_fold(10, 1.0), build_fold(4, None)]
    choice = choose_refit(on_line)
    assert (choice.num_epochs, choice.position) == (10, 0.75)
    by_epoch = [build_fold(3, None), build_fold(6, None), build_fold(4, None), build_fold(9, 0.5)]
    choice = choose_refit(by_epoch)
    assert (choice.num_epochs, choice.position) == (4, None)
    assert choose_refit([build_fold(0, None), build_fold(0, None)]).num_epochs == 0
    warm = [build_fold(1, 1.0, temperature=value) for value in (1.0, 1.5, 8.0)]
    assert choose_refit(warm).temperature == pytest.approx(1.5)


def test_measured_settings_are_medians_and_majorities() -> None:
    folds = [
        build_fold(1, 1.0, measured={"optim.lr": rate, "augment.hflip": flip}, prior_strength=s)
        for rate, flip, s in ((1e-4, "on", 0.2), (3e-4, "off", 0.4), (9e-4, "on", 1.0))
    ]
    assert choose_measured(folds) == {
        "optim.lr": 3e-4,
        "augment.hflip": "on",
        "imbalance.post_hoc_strength": 0.4,
    }
