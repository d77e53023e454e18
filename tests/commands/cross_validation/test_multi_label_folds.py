"""Whole cross-validations of images with any number of labels: files, numbers, resume, models."""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

import finetune
from finetune.bundle.bundle import load_model
from finetune.cli.render.console import ConsoleReporter
from finetune.cli.render.fit_result import show_fit
from finetune.commands.fit.fit import FitResult
from finetune.commands.report.collect import read_facts
from finetune.config.load import build_config
from finetune.evaluation.multi_label.label_thresholds import choose_thresholds
from finetune.inference.predictor import Predictor
from tests.support.helpers import RecordingReporter
from tests.support.pictures import draw_stripes
from tests.support.runs import assert_same_bits, load_weights, write_weights

pytestmark = pytest.mark.runs

LABELS = ("blue", "green", "red")

STOPPER = """
import os, pathlib

def stopping(progress, *, final_factor):
    is_second = pathlib.Path(os.environ.get("STOP", "?"), "folds/2/checkpoints/last.ckpt").exists()
    if is_second and progress > 0.5:
        raise RuntimeError("stopped by the test")
    return 1 - (1 - final_factor) * progress
"""


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images with stripes of up to three colours, a CSV and weights."""
    root = tmp_path_factory.mktemp("stripes")
    random = np.random.default_rng(3)
    rows = []
    for number in range(66):
        present, pixels = draw_stripes(random)
        name = f"{number:02}.png"
        Image.fromarray(pixels).save(root / name)
        split = "test" if number >= 54 else "train"
        rows.append((name, "|".join(np.array(LABELS)[present]), split))
    with (root / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "labels", "split"), *rows])
    write_weights(root / "weights.pth")
    (root / "stopper.py").write_text(STOPPER)
    return root


def fit(stripes: Path, output: Path, **settings: Any) -> FitResult:
    """Cross-validate a small network in two folds, and fit it to all images."""
    small = {
        "data.path": str(stripes / "labels.csv"),
        "data.image_size": 32,
        "data.num_workers": 0,
        "model.backbone": "test_resnet",
        "model.weights": str(stripes / "weights.pth"),
        "augment.name": "none",
        "lr_schedule.name": "stopper:stopping",
        "optim.lr": 0.01,
        "probe.enabled": "off",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.devices": 1,
        "trainer.batch_size": 8,
        "trainer.epochs": 2,
        "cross_validation.num_folds": 2,
        "cross_validation.final": "refit",
        "output": str(output),
    }
    given = {key.replace("__", "."): value for key, value in settings.items()}
    return finetune.fit(build_config({}, assignments={**small, **given}))


@pytest.fixture(scope="module")
def run(stripes: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a finished cross-validation with a refitted network; never change it."""
    sys.path.insert(0, str(stripes))
    try:
        return fit(stripes, tmp_path_factory.mktemp("folds") / "run")
    finally:
        sys.path.remove(str(stripes))
        sys.modules.pop("stopper", None)


def read_out_of_fold(run: Path) -> list[dict[str, str]]:
    with (run / "out_of_fold.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def encode(texts: list[str]) -> Any:
    return np.array([[name in text.split("|") for name in LABELS] for text in texts], np.int64)


def test_joined_metrics_equal_scikit_learn_on_the_out_of_fold_predictions(run: FitResult) -> None:
    rows = read_out_of_fold(run.run_dir)
    assert len(rows) == 54
    p = np.array([[float(row[f"p {name}"]) for name in LABELS] for row in rows])
    truth, flags = (encode([row[key] for row in rows]) for key in ("labels", "predicted"))
    metrics = run.metrics["out_of_fold"]
    assert metrics == pytest.approx(
        {
            "loss": -np.log(np.where(truth > 0, p, 1 - p)).mean(),
            "mean_average_precision": average_precision_score(truth, p),
            "micro_average_precision": average_precision_score(truth, p, average="micro"),
            "macro_f1": f1_score(truth, flags, average="macro"),
            "micro_f1": f1_score(truth, flags, average="micro"),
            "subset_accuracy": (truth == flags).all(axis=1).mean(),
        },
        rel=1e-6,
    )
    folds = np.array([int(row["fold"]) for row in rows])
    for fold in (1, 2):
        others, own = folds != fold, folds == fold
        chosen = choose_thresholds(torch.from_numpy(p[others]), torch.from_numpy(truth[others]))
        assert (flags[own] == (p[own] >= np.array(chosen))).all()
    assert run.cross_validation is not None
    statistics = run.cross_validation["metrics"]["mean_average_precision"]
    of_folds = [average_precision_score(truth[folds == fold], p[folds == fold]) for fold in (1, 2)]
    assert statistics["values"] == pytest.approx(of_folds)
    low, high = statistics["interval"]
    assert low < statistics["mean"] < high
    for name, entry in run.cross_validation["metrics"].items():
        of_folds = [fold["metrics"]["val"][name] for fold in run.cross_validation["folds"]]
        assert entry["values"] == of_folds, "a fold has one value of a metric"
    f1 = [f1_score(truth[folds == one], flags[folds == one], average="macro") for one in (1, 2)]
    assert run.cross_validation["metrics"]["macro_f1"]["values"] == pytest.approx(f1)
    assert json.loads((run.run_dir / "cross_validation.json").read_text()) == run.cross_validation


def test_report_judges_images_at_the_thresholds_of_other_folds(run: FitResult) -> None:
    rows = read_out_of_fold(run.run_dir)
    found = read_facts(run.run_dir).predictions["out_of_fold"]
    assert list(found.paths) == [row["path"] for row in rows]
    assert found.thresholds is not None
    flags = found.probabilities >= found.thresholds
    assert (flags == encode([row["predicted"] for row in rows])).all()
    assert len(np.unique(found.thresholds, axis=0)) == 2


def test_out_of_fold_predictions_are_those_of_the_fold_that_holds_the_image_out(
    run: FitResult, stripes: Path
) -> None:
    rows = [row for row in read_out_of_fold(run.run_dir) if row["fold"] == "2"]
    predictor = Predictor(load_model(run.run_dir / "folds" / "2"), device="cpu")
    expected = predictor.predict_proba([stripes / row["path"] for row in rows])
    found = torch.tensor([[float(row[f"p {name}"]) for name in LABELS] for row in rows])
    assert torch.allclose(found.float(), expected.float(), atol=2e-6)


def test_network_of_all_images_has_the_thresholds_of_all_held_out_images(run: FitResult) -> None:
    rows = read_out_of_fold(run.run_dir)
    p = torch.tensor([[float(row[f"p {name}"]) for name in LABELS] for row in rows]).double()
    expected = choose_thresholds(p, torch.from_numpy(encode([row["labels"] for row in rows])))
    card = load_model(run.run_dir).card
    assert card.thresholds == pytest.approx(expected, abs=1e-6)
    assert run.cross_validation is not None
    choice = run.cross_validation["final"]["choice"]
    assert choice["thresholds"] == list(card.thresholds or ())
    assert card.temperature == choice["temperature"]
    per_label = run.evaluations["test"]["per_label"]
    assert [per_label[name]["threshold"] for name in LABELS] == list(card.thresholds or ())
    report = (run.run_dir / "report.html").read_text(encoding="utf-8")
    assert "of 12 test images have a label that is missed or wrongly added" in report
    evaluated = finetune.evaluate(run.run_dir)
    assert dict(evaluated.evaluation.metrics) == pytest.approx(run.metrics["test"])


def test_killed_cross_validation_ends_with_the_same_bits(
    run: FitResult, stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(stripes)
    monkeypatch.delitem(sys.modules, "stopper", raising=False)
    stopped = tmp_path / "stopped"
    monkeypatch.setenv("STOP", str(stopped))
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit(stripes, stopped)
    assert (stopped / "folds" / "1" / "bundle").exists()
    assert not (stopped / "folds" / "2" / "bundle").exists()
    monkeypatch.delenv("STOP")
    finetune.resume(stopped)
    for name in ("out_of_fold.csv", "folds.csv", "refit/refit.json"):
        assert (stopped / name).read_bytes() == (run.run_dir / name).read_bytes()
    assert run.cross_validation is not None
    assert run.cross_validation["final"]["choice"]["num_epochs"] > 0
    for part in ("folds/1", "folds/2", "refit"):
        first, second = (
            load_weights(run.run_dir / part, "best"),
            load_weights(stopped / part, "best"),
        )
        assert_same_bits(first, second)


def test_ensemble_of_the_same_folds_has_the_same_thresholds_and_is_exported(
    run: FitResult, tmp_path: Path, stripes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(stripes)
    copy = shutil.copytree(run.run_dir, tmp_path / "run", symlinks=True)
    reporter = RecordingReporter()
    result = finetune.resume(
        copy, assignments={"cross_validation.final": "ensemble"}, reporter=reporter
    )
    model = load_model(copy)
    assert len(model.members) == 2
    assert model.card.thresholds == pytest.approx(load_model(run.run_dir).card.thresholds)
    assert result.metrics["out_of_fold"] == pytest.approx(run.metrics["out_of_fold"])
    files = [stripes / f"{number:02}.png" for number in range(54, 66)]
    members = [
        Predictor(load_model(copy / "folds" / fold), device="cpu").predict_proba(files)
        for fold in ("1", "2")
    ]
    mean = torch.stack(members).mean(dim=0)
    assert torch.allclose(Predictor(model, device="cpu").predict_proba(files), mean, atol=1e-5)
    exported = finetune.export(copy, tmp_path / "model")
    assert exported.parity is not None
    assert exported.parity.num_same_labels == exported.parity.num_images
    page = (copy / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "The thresholds have the highest F1 on the held-out images of the folds." in page
    assert "of out_of_fold are at thresholds that the other folds chose." in page
    for folder, has_own_metrics in (("bundle/members/0", True), ("refit/bundle", False)):
        page = (copy / folder / "README.md").read_text(encoding="utf-8")
        assert "The thresholds have the highest F1 on the held-out images of the folds." in page
        assert ("of this network were not measured at them." in page) == has_own_metrics
        assert ("| val | mean_average_precision |" in page) == has_own_metrics
        assert "| val | macro_f1 |" not in page


def test_result_tells_the_mean_of_the_folds_and_the_score_of_all_images(
    run: FitResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show_fit(ConsoleReporter(), run.to_json())
    lines = capsys.readouterr().out.splitlines()
    end = next(row for row, line in enumerate(lines) if line.startswith("Run folder:"))
    assert [line for line in lines[:end] if len(line) > 80] == []
    assert run.cross_validation is not None
    mean = run.cross_validation["metrics"]["mean_average_precision"]["mean"]
    pooled = run.metrics["out_of_fold"]["mean_average_precision"]
    text = " ".join(lines)
    assert f"expected mean average precision {mean:.1%} (" in text
    assert f"{pooled:.1%} of all held-out images together" in text
    assert "at thresholds chosen on the other folds" in text
