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
from finetune.commands.cross_validation.refit import choose_measured, choose_refit, describe_refit
from finetune.commands.fit.fit import FitResult
from finetune.commands.measurement.interpolation import interpolate_weights
from finetune.config.load import build_config, read_config_file
from finetune.errors import ConfigError
from tests.support.helpers import RecordingReporter
from tests.support.runs import load_weights, read_rows, write_weights

pytestmark = pytest.mark.runs


def build_refit_config(data: Path, folder: Path, **assignments: Any) -> finetune.Config:
    """Return the config of a refit after two folds; ``section__key`` is a dotted key."""
    tree = {
        "data": {"path": str(data), "image_size": 32, "num_workers": 0},
        "model": {
            "backbone": "test_resnet",
            "weights": str(write_weights(folder / "weights.pth")),
        },
        "augment": {"name": "none"},
        "trainer": {"epochs": 2, "batch_size": 8, "accelerator": "cpu", "precision": "32-true"},
        "cross_validation": {"num_folds": 2, "final": "refit"},
        "output": str(folder / "run"),
    }
    given = {key.replace("__", "."): value for key, value in assignments.items()}
    return build_config(tree, assignments=given)


@pytest.fixture(scope="module")
def refitted(insects: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a cross-validation of two folds with a refitted network; never change it."""
    folder = tmp_path_factory.mktemp("refit")
    return finetune.fit(build_refit_config(insects, folder, data__test_fraction=0.2))


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
    num_epochs = refitted.cross_validation["final"]["choice"]["num_epochs"]
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(num_epochs + 1)]
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
    page = (refitted.run_dir / "bundle" / "README.md").read_text(encoding="utf-8")
    assert page.count("The held-out images of each fold also chose ") == 1
    assert facts["cross_validation"]["metrics"] == summary["metrics"]
    evaluated = finetune.evaluate(refitted.run_dir)
    expected = facts["metrics"]["test"]["accuracy"]
    assert evaluated.evaluation.metrics["accuracy"] == pytest.approx(expected)


def test_network_is_not_trained_again_unless_the_folds_choose_anew(refitted: FitResult) -> None:
    weights = refitted.run_dir / "refit" / "checkpoints" / "best.ckpt"
    before = weights.stat().st_mtime_ns
    reporter = RecordingReporter()
    result = finetune.resume(refitted.run_dir, reporter=reporter)
    assert weights.stat().st_mtime_ns == before
    assert result.cross_validation == refitted.cross_validation
    assert not [note for note in reporter.notes if "The run is complete" in note]


def build_fold(epoch: int, position: float | None, **more: Any) -> dict[str, Any]:
    fold = {"kept": {"epoch": epoch, "position": position}, "temperature": 1.0, "measured": {}}
    return {**fold, "prior_strength": None, **more}


def test_probes_are_refitted_without_epochs(insects: Path, tmp_path: Path) -> None:
    config = build_refit_config(
        insects, tmp_path, unfreeze__name="linear_probe", trainer__epochs="auto"
    )
    result = finetune.fit(config)
    assert result.cross_validation is not None
    kept = [fold["kept"] for fold in result.cross_validation["folds"]]
    assert kept == [{"position": 0.0, "epoch": 0}] * 2
    assert result.cross_validation["final"]["choice"]["num_epochs"] == 0
    shipped = load_model(result.run_dir).network.state_dict()
    for key, value in load_weights(result.run_dir / "refit", "best").items():
        assert torch.equal(shipped[key.removeprefix("classifier.network.")], value), key


def test_network_trains_as_many_epochs_as_the_folds_kept(insects: Path, tmp_path: Path) -> None:
    result = finetune.fit(build_refit_config(insects, tmp_path, probe__enabled="off"))
    assert result.cross_validation is not None
    choice = result.cross_validation["final"]["choice"]
    epochs = [fold["kept"]["epoch"] for fold in result.cross_validation["folds"]]
    assert choice["num_epochs"] == round(median(epochs)) >= 1
    rows = read_rows(result.run_dir / "refit")
    assert [row["epoch"] for row in rows] == [str(n + 1) for n in range(choice["num_epochs"])]
    shipped = load_model(result.run_dir).network.state_dict()
    for key, value in load_weights(result.run_dir / "refit", "last").items():
        assert torch.equal(shipped[key.removeprefix("classifier.network.")], value), key


def test_network_measures_the_pixels_of_all_images(insects: Path, tmp_path: Path) -> None:
    result = finetune.fit(build_refit_config(insects, tmp_path, data__normalize="dataset"))
    runs = [result.run_dir / name for name in ("folds/1", "folds/2", "refit")]
    means = [tuple(read_config_file(run / "config.yaml")["model"]["pretrained_cfg"]["mean"])
             for run in runs]  # fmt: skip
    assert len(set(means)) == 3
    low, high = sorted(means[:2])
    assert low[0] <= means[2][0] <= high[0], "the folds halve the images"


def test_plateau_which_needs_validation_images_is_refused_before_the_folds(
    insects: Path, tmp_path: Path
) -> None:
    named = {"lr_schedule__name": "plateau", "trainer__epochs": 1}
    config = build_refit_config(insects, tmp_path, **named)
    message = r"refit .*lr_schedule\.name=plateau.*another schedule.*final=ensemble"
    for command in (finetune.plan_fit, finetune.fit):
        with pytest.raises(ConfigError, match=message):
            command(config)
    assert not (tmp_path / "run").exists()
    ensemble = {**named, "cross_validation__final": "ensemble"}
    run = finetune.fit(build_refit_config(insects, tmp_path, **ensemble)).run_dir
    with pytest.raises(ConfigError, match=message):
        finetune.resume(run, assignments={"cross_validation.final": "refit"})


def test_choice_is_the_median_of_the_larger_part_of_the_folds() -> None:
    on_line = [build_fold(10, 0.5), build_fold(10, 0.75), build_fold(10, 1.0), build_fold(4, None)]
    choice = choose_refit(on_line)
    assert (choice.num_epochs, choice.position) == (10, 0.75)
    by_epoch = [build_fold(3, None), build_fold(6, None), build_fold(4, None), build_fold(9, 0.5)]
    choice = choose_refit(by_epoch)
    assert (choice.num_epochs, choice.position) == (4, None)
    assert choose_refit([build_fold(0, None), build_fold(0, None)]).num_epochs == 0
    probes = [build_fold(10, 0.0), build_fold(10, 0.0), build_fold(10, 0.5)]
    assert choose_refit(probes).num_epochs == 0, "the last epoch is not used"
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


def test_description_of_a_refitted_probe_has_no_epochs() -> None:
    text = describe_refit(choose_refit([build_fold(10, 0.0)] * 2), {}, 72)
    assert text == "Refit on all 72 images, as the folds chose: linear probe."
    text = describe_refit(choose_refit([build_fold(10, 0.25)] * 2), {}, 72)
    assert "10 epochs" in text
    assert "25% of the way" in text


def test_majority_of_measured_settings_of_any_type() -> None:
    folds = [
        build_fold(1, 1.0, measured={"a": value, "b": sizes, "model.pretrained_cfg": {"mean": [x]}})
        for value, sizes, x in ((True, [32, 64], 0.1), (False, [48], 0.2), (True, [32, 64], 0.2))
    ]
    measured = choose_measured(folds)
    assert measured == {"a": True, "b": [32, 64]}
    assert measured["a"] is True


def test_dry_run_names_the_refit_that_is_left(insects: Path, tmp_path: Path) -> None:
    ensemble = {"trainer__epochs": 1, "cross_validation__final": "ensemble"}
    finetune.fit(build_refit_config(insects, tmp_path, **ensemble))
    reporter = RecordingReporter()
    again = build_refit_config(insects, tmp_path, trainer__epochs=1, resume="auto")
    finetune.plan_fit(again, reporter=reporter)
    assert "all folds are complete; the network of all images to be trained" in reporter.notes[0]
    assert "cross_validation.final changes from ensemble to refit." in reporter.notes
