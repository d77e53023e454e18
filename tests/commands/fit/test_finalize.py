"""Tests of the calibration and evaluation at the end of a run, and of its bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
from finetune.bundle.bundle import load_model
from finetune.bundle.model_card import read_card_json
from finetune.evaluation.calibration import calibrate
from finetune.inference.predictor import Predictor
from finetune.inference.scoring import evaluate_logits
from finetune.types import Split
from tests.support.runs import (
    build_photo_manifest,
    create_small_config,
    read_rows,
    write_photos,
    write_weights,
)

pytestmark = pytest.mark.runs

PROBE_ALONE = {"unfreeze__name": "linear_probe", "probe__enabled": "on", "optim__lr": "auto"}
"""Settings of a run that ends with its linear probe."""


@pytest.fixture(scope="module")
def photos(animals: Path) -> Path:
    """Return the photos of three classes; never change them."""
    return animals


def fit(photos: Path, output: Path, **more: object) -> finetune.commands.fit.fit.FitResult:
    settings: dict[str, object] = {
        "data__path": str(photos),
        "output": str(output),
        "calibration__enabled": "on",
        "optim__lr": 0.01,
        "trainer__epochs": 3,
    }
    return finetune.fit(create_small_config(**settings | more))


@pytest.fixture(scope="module")
def calibrated(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a run with a temperature that lowers the loss; never change it."""
    result = fit(photos, tmp_path_factory.mktemp("runs") / "run")
    assert result.calibration is not None
    assert result.calibration["temperature"] == result.calibration["fitted_temperature"] != 1
    return result


def test_temperature_is_fitted_to_validation_images(calibrated: Any, photos: Path) -> None:
    manifest = build_photo_manifest(photos)
    held_out = manifest.get_samples(Split.VAL)
    best = load_model(calibrated.run_dir / "checkpoints" / "best.ckpt")
    assert best.card.temperature == 1
    uncalibrated = Predictor(best, device="cpu")
    paths, labels = manifest.resolve_paths(held_out), manifest.encode_labels(held_out)
    expected = calibrate(uncalibrated.predict_logits(paths)[:, 0], torch.tensor(labels))
    assert expected is not None
    assert calibrated.calibration == expected.to_json()
    card = load_model(calibrated.run_dir).card
    assert card.temperature == expected.temperature
    assert "the temperature" in card.facts["validation_choices"]
    before = evaluate_logits(uncalibrated, uncalibrated.predict_logits(paths), labels)
    assert calibrated.calibration["before"]["loss"] == pytest.approx(before.metrics["loss"])
    metrics = dict(calibrated.metrics["val"])
    assert metrics["loss"] < before.metrics["loss"]
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert metrics[name] == before.metrics[name], "the ranking of classes is unchanged"


def test_bundle_evaluates_to_the_metrics_on_its_card(calibrated: Any, photos: Path) -> None:
    facts = read_card_json(calibrated.run_dir / "bundle")["facts"]
    assert facts["metrics"] == calibrated.metrics
    for model in (calibrated.run_dir, calibrated.run_dir / "bundle"):
        result = finetune.evaluate(model, photos, split=Split.VAL, device="cpu")
        assert dict(result.evaluation.metrics) == facts["metrics"]["val"]


def test_bundle_weights_equal_best_checkpoint(calibrated: Any) -> None:
    best = load_model(calibrated.run_dir / "checkpoints" / "best.ckpt").network.state_dict()
    for name, tensor in load_model(calibrated.run_dir).network.state_dict().items():
        assert torch.equal(tensor, best[name]), name


def test_resume_complete_run_returns_the_same_result(calibrated: Any) -> None:
    again = finetune.resume(calibrated.run_dir)
    assert again.calibration == calibrated.calibration
    assert again.metrics == calibrated.metrics
    assert json.loads(json.dumps(again.to_json()))["calibration"] == calibrated.calibration


def test_resume_run_killed_before_its_end_rewrites_the_same_bundle(
    photos: Path, tmp_path: Path
) -> None:
    result = fit(photos, tmp_path / "run", trainer__epochs=1)
    before = read_card_json(result.run_dir / "bundle")
    (result.run_dir / ".done").unlink()
    assert finetune.resume(result.run_dir).calibration == result.calibration
    assert read_card_json(result.run_dir / "bundle") == before


def test_probe_only_run_is_calibrated(photos: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    probe = {"model__weights": str(weights), "unfreeze__name": "linear_probe"}
    probe |= {"trainer__epochs": "auto", "optim__lr": "auto"}
    result = fit(photos, tmp_path / "run", **probe)
    assert result.calibration is not None
    card = load_model(result.run_dir).card
    assert card.temperature == result.calibration["temperature"]


def test_choices_of_validation_images_are_on_the_card_in_evaluate_and_in_the_report(
    photos: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    result = fit(
        photos, tmp_path / "run", model__weights=str(weights), trainer__epochs=1,
        imbalance__strategy="tau_norm", lr_schedule__name="plateau", model__batch_norm="train",
        report__enabled="on", calibration__enabled="off",
    )  # fmt: skip
    expected = ("when the learning rate fell", "the epoch", "tau of the classifier")
    facts = load_model(result.run_dir).card.facts
    assert facts["rebalancing"]["method"] == "tau_norm"
    assert tuple(facts["validation_choices"]) == expected
    assert finetune.evaluate(result.run_dir, split="val").validation_choices == expected
    page = (result.run_dir / "report.html").read_text(encoding="utf-8")
    assert f"re-balanced by tau_norm with tau {facts['rebalancing']['tau']:g}" in page
    assert (
        "The validation images also chose when the learning rate fell, the epoch and tau of the"
        in page
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PROBE_ALONE, ()),
        (PROBE_ALONE | {"probe__depth": 2, "optim__lr": 0.01}, ("the epoch of the last stage",)),
        ({"trainer__epochs": 1}, ()),
        ({"trainer__epochs": 2}, ("the epoch",)),
    ],
)
def test_choices_that_validation_images_could_not_make_are_not_named(
    settings: dict[str, Any], expected: tuple[str, ...], photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    result = fit(
        photos, output, **{"calibration__enabled": "off", "trainer__epochs": "auto"} | settings
    )
    assert tuple(load_model(result.run_dir).card.facts["validation_choices"]) == expected


@pytest.mark.parametrize("enabled", ["auto", "off"])
def test_calibration_off_or_auto_with_few_images_keeps_temperature_one(
    enabled: str, photos: Path, tmp_path: Path
) -> None:
    result = fit(photos, tmp_path / "run", trainer__epochs=1, calibration__enabled=enabled)
    assert result.calibration is None
    assert load_model(result.run_dir).card.temperature == 1
    stored = (result.run_dir / "config.yaml").read_text(encoding="utf-8")
    assert "calibration:\n  enabled: 'off'" in stored


def test_rarest_class_without_validation_images_has_undefined_metrics(
    tmp_path: Path,
) -> None:
    photos = write_photos(tmp_path / "photos")
    for file in sorted((photos / "train" / "cow").iterdir())[2:]:
        file.unlink()
    shutil.rmtree(photos / "val" / "cow")
    for probe in ("off", "on"):
        weights = write_weights(tmp_path / "weights.pth")
        run = tmp_path / f"probe-{probe}"
        result = fit(photos, run, model__weights=str(weights), probe__enabled=probe)
        assert result.metrics["val"]["rarest_third_recall"] is None
        details = result.evaluations["val"]
        assert details["rarest_third"] == {"classes": ["cow"], "ranked_by": "train_images"}
        assert details["num_classes_averaged"]["balanced_accuracy"] == 2
        assert details["per_class"]["cow"]["recall"] is None
        readme = (run / "bundle" / "README.md").read_text(encoding="utf-8")
        assert "| val | rarest_third_recall | undefined |" in readme
        table = read_rows(run)
        assert len(table) == (4 if probe == "on" else 3)
        assert all("val/rarest_third_recall" not in row for row in table)
        assert all(0 <= float(row["val/balanced_accuracy"]) <= 1 for row in table)
        again = finetune.evaluate(run, device="cpu").to_json()
        assert json.loads(json.dumps(again))["metrics"]["rarest_third_recall"] is None
