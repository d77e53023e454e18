"""Whole runs on multi-label images: fit, resume, several ranks, evaluate, predict and export."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

import finetune
from finetune.bundle.bundle import load_model
from finetune.bundle.model_card import read_card_json
from finetune.bundle.validation_choices import list_training_choices
from finetune.commands.fit.fit import FitResult
from finetune.commands.run_images import read_run_images
from finetune.config.load import build_config
from finetune.data.manifest import read_manifest
from finetune.errors import ConfigError
from finetune.evaluation.multi_label.label_thresholds import choose_thresholds
from finetune.inference.predictor import Predictor
from finetune.models.costs import throughput
from finetune.types import Split
from tests.support.helpers import RecordingReporter
from tests.support.pictures import draw_stripes
from tests.support.runs import (
    assert_same_bits,
    compute_largest_difference,
    drop_times,
    load_weights,
    read_rows,
    run_finetune,
    write_weights,
)

pytestmark = pytest.mark.runs

LABELS = ("blue", "green", "red")
NUM_IMAGES = {"train": 40, "val": 21, "test": 15}
"""Images of each split; those of val are not divisible by two ranks."""

STOPPER = """
import os

def stopping(progress, *, final_factor):
    if os.environ.get("STOP") and round(progress * 10) == int(os.environ["STOP"]):
        raise RuntimeError("stopped by the test")
    return 1 - (1 - final_factor) * progress
"""


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images with stripes of up to three colours, and CSVs of their labels."""
    root = tmp_path_factory.mktemp("stripes")
    random = np.random.default_rng(3)
    rows = []
    for split, count in NUM_IMAGES.items():
        for number in range(count):
            present, pixels = draw_stripes(random)
            name = f"{split}{number:02}.png"
            Image.fromarray(pixels).save(root / name)
            rows.append((name, present.astype(int).tolist(), split))
    joined = [(n, "|".join(np.array(LABELS)[np.array(p) > 0]), s) for n, p, s in rows]
    for file, header, lines in (
        ("labels.csv", ("path", "labels", "split"), joined),
        ("columns.csv", ("path", *LABELS, "split"), [(n, *p, s) for n, p, s in rows]),
    ):
        with (root / file).open("w", newline="") as stream:
            csv.writer(stream).writerows([header, *lines])
    write_weights(root / "weights.pth")
    (root / "stopper.py").write_text(STOPPER)
    return root


def build_settings(data: Path) -> dict[str, object]:
    """Return settings of runs and comparisons."""
    return {
        "data.path": str(data),
        "data.image_size": 32,
        "data.num_workers": 0,
        "augment.name": "none",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
    }


def fit(stripes: Path, output: Path, *, data: str = "labels.csv", **settings: object) -> FitResult:
    """Fit a small network for two epochs of five steps after a linear probe."""
    small = {
        **build_settings(stripes / data),
        "model.backbone": "test_resnet",
        "model.weights": str(stripes / "weights.pth"),
        "calibration.enabled": "on",
        "optim.lr": 0.002,
        "trainer.devices": 1,
        "trainer.batch_size": 8,
        "trainer.epochs": 2,
        "output": str(output),
    }
    given = {key.replace("__", "."): value for key, value in settings.items()}
    return finetune.fit(build_config({}, assignments={**small, **given}))


@pytest.fixture(scope="module")
def run(stripes: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a finished run; never change it."""
    return fit(stripes, tmp_path_factory.mktemp("runs") / "run", tracking__wandb="offline")


@pytest.fixture(scope="module")
def other_run(stripes: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a run from the same weights, of another seed and loss; never change it."""
    output = tmp_path_factory.mktemp("runs") / "other"
    return fit(stripes, output, seed=1, imbalance__strategy="class_weights")


def test_fit_multi_label_reports_metrics_of_each_label(run: FitResult) -> None:
    metrics = run.metrics["test"]
    assert metrics.keys() == {
        "loss", "mean_average_precision", "micro_average_precision", "macro_f1", "micro_f1",
        "subset_accuracy",
    }  # fmt: skip
    per_label = run.evaluations["test"]["per_label"]
    assert tuple(per_label) == LABELS
    values = [stats["average_precision"] for stats in per_label.values()]
    assert metrics["mean_average_precision"] == pytest.approx(np.mean(values))
    rows = read_rows(run.run_dir)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(0 <= float(row["val/mean_average_precision"]) <= 1 for row in rows)
    assert run.plan["training"]["loss"] == "bce"
    assert run.plan["training"]["monitor"] == "mean_average_precision"
    assert run.plan["probe"]["loss"] == "bce"


def test_fit_multi_label_card_has_thresholds_and_no_prior(run: FitResult) -> None:
    card = read_card_json(run.run_dir / "bundle")
    assert card["format"] == 2
    assert card["priors"] is None
    per_label = run.evaluations["val"]["per_label"]
    assert card["thresholds"] == [per_label[name]["threshold"] for name in LABELS]
    readme = (run.run_dir / "bundle/README.md").read_text()
    assert "sigmoid()" in readme
    assert f"| red | {card['thresholds'][2]:.4f} |" in readme
    manifest = read_manifest(run.run_dir / "manifest.csv", root=Path())
    assert manifest.is_multi_label


def test_fit_multi_label_logs_its_worst_mistakes(run: FitResult) -> None:
    [part] = (run.run_dir / "wandb").glob("offline-run-*")
    [file] = (part / "files/media/table/worst_mistakes").rglob("*.table.json")
    table = json.loads(file.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert rows
    assert all(row["actual"] != row["predicted"] for row in rows)
    probabilities = [row["probability of actual"] for row in rows]
    assert probabilities == sorted(probabilities)
    photos = list((part / "files/media/images/worst_mistakes").rglob("*.*"))
    assert len([photo for photo in photos if photo.is_file()]) == len(rows)


def test_evaluate_multi_label_equals_scikit_learn_on_predictions(
    run: FitResult, stripes: Path, tmp_path: Path
) -> None:
    files = sorted(stripes.glob("test*.png"))
    (tmp_path / "new").mkdir()
    for file in files:
        (tmp_path / "new" / file.name).symlink_to(file)
    predicted = finetune.predict(run.run_dir, tmp_path / "new")
    table = list(csv.DictReader(io.StringIO(predicted.to_csv())))
    p = np.array([[float(row[f"probability_{name}"]) for name in LABELS] for row in table])
    with (stripes / "columns.csv").open() as stream:
        truth = {row["path"]: [int(row[n]) for n in LABELS] for row in csv.DictReader(stream)}
    y = np.array([truth[Path(row["path"]).name] for row in table])
    result = finetune.evaluate(run.run_dir, split="test")
    metrics = result.evaluation.metrics
    assert metrics["mean_average_precision"] == pytest.approx(average_precision_score(y, p))
    flags = np.array([[name in row["labels"].split("|") for name in LABELS] for row in table])
    assert metrics["macro_f1"] == pytest.approx(f1_score(y, flags, average="macro"))
    thresholds = read_card_json(run.run_dir / "bundle")["thresholds"]
    assert (flags == (p >= np.array(thresholds))).all()
    first = json.loads(json.dumps(predicted.to_json()))["predictions"][0]
    assert list(first["probabilities"]) == list(LABELS)
    assert [one["label"] for one in first["labels"]] == table[0]["labels"].split("|") or not flags[
        0
    ].any()


def test_evaluate_multi_label_bundle_reads_labels_of_other_data(
    run: FitResult, stripes: Path
) -> None:
    by_run = finetune.evaluate(run.run_dir, split="test").evaluation
    bundle = run.run_dir / "bundle"
    for name in ("labels.csv", "columns.csv"):
        other = finetune.evaluate(bundle, stripes / name, split="test").evaluation
        assert dict(other.metrics) == pytest.approx(dict(by_run.metrics))


def test_fit_multi_label_columns_give_the_same_weights_as_texts(
    run: FitResult, stripes: Path, tmp_path: Path
) -> None:
    other = fit(stripes, tmp_path / "other", data="columns.csv", data__task="multi_label")
    assert_same_bits(load_weights(run.run_dir), load_weights(other.run_dir))
    assert other.metrics == run.metrics


def test_fit_multi_label_resumed_run_has_the_same_bits(
    stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(stripes)
    monkeypatch.delitem(sys.modules, "stopper", raising=False)
    settings: dict[str, Any] = {"lr_schedule__name": "stopper:stopping", "augment__mixup": 0.2}
    whole = fit(stripes, tmp_path / "whole", **settings)
    monkeypatch.setenv("STOP", "7")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit(stripes, tmp_path / "stopped", **settings)
    monkeypatch.delenv("STOP")
    resumed = finetune.resume(tmp_path / "stopped")
    assert_same_bits(load_weights(whole.run_dir), load_weights(resumed.run_dir))
    assert resumed.metrics == whole.metrics
    rows = [drop_times(row) for row in read_rows(resumed.run_dir)]
    assert rows == [drop_times(row) for row in read_rows(whole.run_dir)]


@pytest.mark.slow
def test_fit_multi_label_on_two_ranks_counts_each_image_once(stripes: Path, tmp_path: Path) -> None:
    one = fit(stripes, tmp_path / "one", trainer__gradient_clip_val=0.0, optim__name="sgd")
    words = (
        "fit", stripes / "labels.csv", "--output", tmp_path / "two", "--devices", "2",
        "--epochs", "2", "--backbone", "test_resnet", "--weights", stripes / "weights.pth",
        "data.image_size=32", "data.num_workers=0", "augment.name=none", "optim.lr=0.002",
        "optim.name=sgd", "trainer.gradient_clip_val=0", "trainer.accelerator=cpu",
        "trainer.precision=32-true", "trainer.batch_size=8",
    )  # fmt: skip
    process = run_finetune(tmp_path, *words)
    assert process.returncode == 0, process.stderr
    difference = compute_largest_difference(
        load_weights(one.run_dir), load_weights(tmp_path / "two")
    )
    assert difference < 1e-4
    pairs = zip(read_rows(one.run_dir), read_rows(tmp_path / "two"), strict=True)
    for first, second in pairs:
        for name in ("val/loss", "val/mean_average_precision", "val/micro_f1"):
            assert float(first[name]) == pytest.approx(float(second[name]), abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss__name": "asymmetric", "loss__params": {"gamma_neg": 2.0}},
        {"imbalance__strategy": "class_weights", "checkpoint__monitor": "macro_f1"},
        {"unfreeze__name": "linear_probe"},
        {"probe__enabled": "off", "trainer__monitor": "micro_f1", "loss__label_smoothing": 0.1},
    ],
)
def test_fit_multi_label_other_settings(
    stripes: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    if settings.get("unfreeze__name") == "linear_probe":
        settings = {**settings, "trainer__epochs": "auto", "optim__lr": "auto"}
    result = fit(stripes, tmp_path / "run", **settings)
    assert 0 < (result.metrics["val"]["mean_average_precision"] or 0) <= 1


def test_export_multi_label_has_the_same_probabilities(run: FitResult, tmp_path: Path) -> None:
    exported = finetune.export(run.run_dir, tmp_path / "model")
    assert exported.parity is not None
    assert exported.parity.max_abs_diff < 1e-4
    assert exported.parity.num_same_labels == exported.parity.num_images
    by_export = finetune.evaluate(tmp_path / "model", run.plan["data"]["path"] + "/labels.csv")
    by_run = finetune.evaluate(run.run_dir, split="test")
    assert dict(by_export.evaluation.metrics) == pytest.approx(
        dict(by_run.evaluation.metrics), abs=1e-5
    )


def test_multi_label_model_refuses_what_is_for_one_class(run: FitResult, stripes: Path) -> None:
    with pytest.raises(ConfigError, match=r"--prior uniform cannot apply to a multi-label"):
        finetune.evaluate(run.run_dir, prior="uniform")
    with pytest.raises(ConfigError, match=r"--top-k 2 cannot apply to a multi-label"):
        finetune.predict(run.run_dir, stripes, top_k=2)


def test_mean_of_multi_label_models_is_evaluated_predicted_and_exported(
    run: FitResult, other_run: FitResult, stripes: Path, tmp_path: Path
) -> None:
    other = other_run
    paths = [run.run_dir, other.run_dir]
    results = [
        finetune.predict(run.run_dir, stripes),
        finetune.predict(other.run_dir, stripes),
        finetune.predict(paths, stripes),
    ]
    probabilities = [
        {
            p.path: dict(zip(LABELS, p.all_probabilities or (), strict=True))
            for p in result.predictions
        }
        for result in results
    ]
    one, two, mean = probabilities
    for path, labels in mean.items():
        for label, probability in labels.items():
            expected = (one[path][label] + two[path][label]) / 2
            assert probability == pytest.approx(expected, abs=1e-5)
    exported = finetune.export(paths, tmp_path / "model")
    assert exported.parity is not None
    assert exported.parity.max_abs_diff < 1e-3
    evaluated = finetune.evaluate(tmp_path / "model", stripes / "labels.csv")
    assert evaluated.evaluation.metrics == pytest.approx(
        finetune.evaluate(paths, stripes / "labels.csv").evaluation.metrics, abs=1e-4
    )


def test_soups_of_multi_label_runs_average_weights_and_choose_thresholds_anew(
    run: FitResult, other_run: FitResult, stripes: Path, tmp_path: Path
) -> None:
    paths = [run.run_dir, other_run.run_dir]
    uniform = finetune.export(paths, tmp_path / "uniform", soup="uniform")
    assert uniform.soup is not None
    assert [one["chosen"] for one in uniform.soup["runs"]] == [True, True]
    found = load_model(tmp_path / "uniform")
    first, second, averaged = (
        model.network.state_dict()["fc.weight"]
        for model in (load_model(paths[0]), load_model(paths[1]), found)
    )
    assert not torch.equal(first, second)
    averaged = averaged * found.card.facts.get("temperature_in_head", 1.0)
    torch.testing.assert_close(averaged, (first + second) / 2)
    evaluation = finetune.evaluate(tmp_path / "uniform", stripes / "labels.csv", split="val")
    probabilities, targets = predict_targets(tmp_path / "uniform", run.run_dir)
    expected = choose_thresholds(probabilities, targets)
    card = read_card_json(tmp_path / "uniform")
    assert card["facts"]["calibration"]["num_images"] == 21
    limits = card["thresholds"]
    assert limits == pytest.approx(list(expected), abs=1e-5)
    assert limits != read_card_json(run.run_dir / "bundle")["thresholds"]
    key = "val_mean_average_precision"
    precision = average_precision_score(targets.numpy(), probabilities.numpy())
    assert uniform.soup[key] == pytest.approx(precision)
    assert evaluation.evaluation.metrics["mean_average_precision"] == pytest.approx(precision)
    by_run = {
        str(result.run_dir): result.metrics["val"]["mean_average_precision"] or 0
        for result in (run, other_run)
    }
    order = sorted(by_run, key=lambda path: -by_run[path])
    reporter = RecordingReporter()
    greedy = finetune.export(paths, tmp_path / "greedy", soup="greedy", reporter=reporter)
    assert greedy.soup is not None
    assert [one["run"] for one in greedy.soup["runs"]] == [Path(path).name for path in order]
    assert [one[key] for one in greedy.soup["runs"]] == pytest.approx(
        [by_run[path] for path in order]
    )
    takes_both = precision >= by_run[order[0]]
    assert [one["chosen"] for one in greedy.soup["runs"]] == [True, takes_both]
    assert any("Mean average precision on 21 shared" in note for note in reporter.notes)
    readme = (tmp_path / "greedy/README.md").read_text()
    facts = load_model(tmp_path / "greedy").card.facts
    chosen = [key for path in paths for key in list_training_choices(load_model(path).card.facts)]
    assert facts["training_choices"] == list(dict.fromkeys(chosen))
    assert chosen
    assert "the runs of the soup" in readme


def test_compare_multi_label_scores_backbones_as_the_probe_of_fit_does(
    run: FitResult, stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_MAX_BATCH_SECONDS", "_MAX_TOTAL_SECONDS"):
        monkeypatch.setattr(throughput, limit, 0.02)
    write_weights(tmp_path / "test_resnet.pth")
    write_weights(tmp_path / "test_vit.pth", "test_vit")
    config = build_config({}, assignments=build_settings(stripes / "labels.csv"))
    names = ["test_vit", "test_resnet"]
    result = finetune.compare(config, names, weights=str(tmp_path))
    assert not result.failures
    assert result.monitor == "mean_average_precision"
    first = read_rows(run.run_dir)[0]
    rows = {row.backbone: row for row in result.rows}
    for name in ("mean_average_precision", "macro_f1", "subset_accuracy", "loss"):
        found = rows["test_resnet"].metrics[name]
        assert found == pytest.approx(float(first[f"val/{name}"]), abs=1e-4)
    values = [row.metrics["mean_average_precision"] for row in result.rows]
    assert values == sorted(values, reverse=True)
    tree = result.to_json()["backbones"][0]
    low, high = tree["mean_average_precision_interval"]
    assert 0 < low <= values[0] <= high <= 1
    assert tree["stages"] is None


def predict_targets(model: Path, run_dir: Path) -> tuple[Tensor, Tensor]:
    """Return the probabilities of a run's validation images by a model, and their labels."""
    manifest = read_run_images(run_dir).manifest  # type: ignore[union-attr]
    samples = manifest.get_samples(Split.VAL)
    probabilities = Predictor(load_model(model), device="cpu").predict_proba(
        [manifest.root / sample.path for sample in samples]
    )
    return probabilities, torch.from_numpy(manifest.encode_targets(samples))


def test_weights_of_multi_label_models_minimise_the_log_loss_of_labels(
    run: FitResult, other_run: FitResult
) -> None:
    paths = [run.run_dir, other_run.run_dir]
    result = finetune.evaluate(paths, split="val", weights="val")
    weights = [weight for _, weight in result.members]
    assert sum(weights) == pytest.approx(1)
    (one, targets), (two, _) = (predict_targets(path, run.run_dir) for path in paths)
    losses = [
        compute_log_loss(targets, share * one + (1 - share) * two)
        for share in np.linspace(0, 1, 101).tolist()
    ]
    assert result.evaluation.metrics["loss"] == pytest.approx(min(losses), abs=1e-4)
    assert 100 * weights[0] == pytest.approx(int(np.argmin(losses)), abs=1)
    assert "the weights of the models" in result.validation_choices


def compute_log_loss(targets: Tensor, probabilities: Tensor) -> float:
    """Return the mean log loss over images and labels."""
    return float(binary_cross_entropy(probabilities.double(), targets.double()))


def test_fit_multi_label_refuses_label_smoothing_of_loss_without_it(
    stripes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"label_smoothing=0\.1 cannot apply to .*asymmetric"):
        fit(stripes, tmp_path / "run", loss__name="asymmetric", loss__label_smoothing=0.1)
