"""Runs that are a linear probe, that start with one, and that do not improve on it."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune as api
from finetune.bundle.model_card import read_card_json
from finetune.cli.main import run as run_command
from finetune.errors import ConfigError
from finetune.probe.cross_validation import fit_head
from tests.support.runs import (
    assert_same_bits,
    drop_times,
    force_last_stage_improvement,
    load_checkpoint,
    load_weights,
    read_rows,
    run_finetune,
    write_photos,
    write_weights,
)
from tests.support.wandb_file import read_offline_runs

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]

SMALL = (
    "data.image_size=32", "data.num_workers=0", "model.backbone=test_resnet",
    "trainer.batch_size=8", "trainer.precision=32-true", "trainer.accelerator=cpu",
    "report.enabled=off",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with photos of easily separable classes, weights and an empty cache."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos")
    write_weights(tmp_path / "weights.pth")
    return tmp_path


def build_command(place: Path, *arguments: object) -> list[str]:
    command = ("fit", place / "photos", "--weights", place / "weights.pth", *SMALL, *arguments)
    return [str(argument) for argument in command]


def fit(place: Path, name: str, *arguments: object) -> Path:
    """Fit in this process successfully, and return the run folder."""
    run = place / name
    assert run_command(build_command(place, "--output", run, *arguments)) == 0
    return run


def read_score(run: Path, row: int, metric: str = "accuracy") -> float:
    return float(read_rows(run)[row][f"val/{metric}"])


def evaluate(run: Path) -> dict[str, float]:
    """Return the metrics of the finished model on the validation images."""
    metrics: dict[str, float] = api.evaluate(run).to_json()["metrics"]
    return metrics


def read_stdout(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_linear_probe_run_has_metrics_and_a_model_and_is_complete(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(place, "run", "--unfreeze", "linear_probe")
    output = read_stdout(capsys)
    assert "horizontal flip" in output
    assert "logistic regression" in output
    assert not re.search(r"\d+ epochs? of", output)
    (row,) = read_rows(run)
    assert row["epoch"] == "1"
    assert not (run / "checkpoints" / "last.ckpt").exists(), "a linear probe has nothing to resume"
    metrics = evaluate(run)
    for name in ("accuracy", "loss", "macro_f1", "balanced_accuracy"):
        assert metrics[name] == pytest.approx(float(row[f"val/{name}"]), abs=1e-4)
    assert run_command(["fit", "--resume", str(run)]) == 0
    assert "run is complete" in read_stdout(capsys)
    assert len(read_rows(run)) == 1


def test_linear_probe_leaves_the_backbone_unchanged(place: Path) -> None:
    run = fit(place, "run", "--unfreeze", "linear_probe")
    before = torch.load(place / "weights.pth", weights_only=True)
    after = load_weights(run, "best")
    for name, tensor in before.items():
        if not name.startswith("fc."):
            assert torch.equal(after[f"classifier.network.{name}"], tensor), name


def test_linear_probe_of_the_same_images_reuses_cached_features(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(place, "first", "--unfreeze", "linear_probe")
    assert "cached features" not in read_stdout(capsys)
    fit(place, "second", "--unfreeze", "linear_probe", "--imbalance", "class_weights")
    assert "39 of 39 images had cached features" in read_stdout(capsys)


def test_fine_tuning_starts_from_the_probe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = fit(place, "probe", "--unfreeze", "linear_probe", "probe.hflip=off")
    capsys.readouterr()
    run = fit(place, "run", "--unfreeze", "all", "--epochs", 1, "optim.lr=1e-12", "probe.hflip=off")
    assert "baseline and initial head for fine-tuning" in read_stdout(capsys)
    assert [row["epoch"] for row in read_rows(run)] == ["0", "1"]
    assert read_score(run, 0, "loss") == pytest.approx(read_score(probe, 0, "loss"), abs=1e-6)
    # the head is scaled to the training loss, which changes its confidence and nothing else
    assert read_score(run, 1) == read_score(run, 0)
    start, fitted = load_weights(run, "start"), load_weights(probe, "best")
    temperature = load_checkpoint(run, "start")["probe"]["head_temperature"]
    assert temperature > 1, "label smoothing calls for smaller logits"
    for name, value in fitted.items():
        scale = temperature if name.startswith("classifier.network.fc") else 1
        torch.testing.assert_close(start[name] * scale, value)


def test_fine_tuning_after_the_probe_trains_batch_norm_and_dropout(place: Path) -> None:
    options = ("--unfreeze", "all", "--epochs", 1, "model.batch_norm=train", "optim.lr=1e-9")
    before = torch.load(place / "weights.pth", weights_only=True)
    losses = []
    for name, rate in (("plain", 0), ("dropout", 0.9)):
        run = fit(place, name, *options, f"model.drop_rate={rate}", "--augment", "none")
        moved = load_weights(run)["classifier.network.bn1.running_mean"]
        assert not torch.allclose(moved, before["bn1.running_mean"])
        losses.append(float(read_rows(run)[1]["train/loss"]))
    assert losses[1] > losses[0] + 0.1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fine_tuning_that_diverges_keeps_the_probe_as_best_model(
    optimizer: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a learning rate at which training diverges but stays finite
    run = fit(
        place, "run", "--unfreeze", "all", "--epochs", 2, "optim.lr=0.1", "trainer.monitor=loss",
        f"optim.name={optimizer}", "optim.backbone_lr_scale=1",
    )  # fmt: skip
    output = read_stdout(capsys)
    assert read_score(run, -1, "loss") > read_score(run, 0, "loss")
    # one voice: the diagnosis names what happened, and no other line advises
    assert output.index("Diagnosis:") < output.index(
        "Let a new run measure the learning rate:"
        if optimizer == "adamw"
        else "note: Fine-tuning did not improve on the linear probe"
    )
    assert not re.search(r"Lower optim\.|Try more|fell from .* after epoch", output)
    assert evaluate(run)["loss"] == pytest.approx(read_score(run, 0, "loss"), abs=1e-4)


def test_wandb_logs_the_probe_as_baseline(place: Path) -> None:
    run = fit(place, "run", "--unfreeze", "all", "--epochs", 1, "--wandb", "offline")
    (part,) = read_offline_runs(run)
    assert part.summary["probe/val/accuracy"] == pytest.approx(read_score(run, 0))
    assert "final/val/accuracy" in part.summary


def test_epoch_better_than_the_probe_is_the_best_model(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    underfit = partial(fit_head, penalties=(10.0,))
    monkeypatch.setattr("finetune.probe.linear_probe.fit_head", underfit)
    run = fit(
        place, "run", "--unfreeze", "all", "--epochs", 4, "optim.lr=1e-3", "--augment", "none",
        "optim.backbone_lr_scale=1", "trainer.monitor=loss", "loss.label_smoothing=0",
    )  # fmt: skip
    losses = [read_score(run, row, "loss") for row in range(5)]
    assert min(losses) < losses[0]
    chosen = load_checkpoint(run, "best")["interpolation"]
    assert chosen["fraction"] > 0
    best = min(chosen["scores"].values())
    assert best <= losses[-1] + 1e-4
    assert evaluate(run)["loss"] == pytest.approx(best, abs=1e-4)


def test_run_interrupted_after_its_probe_resumes_bit_identically(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--unfreeze", "all", "--epochs", 2)
    reference = fit(place, "reference", *options)
    import finetune.commands.fit.train as train

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise ConfigError("interrupted by the test")

    run = place / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "create_trainer", interrupt)
        assert run_command(build_command(place, "--output", run, *options)) == 2
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert run_command(["fit", "--resume", str(run)]) == 0
    assert_same_bits(load_weights(run), load_weights(reference))
    assert list(map(drop_times, read_rows(run))) == list(map(drop_times, read_rows(reference)))


def test_linear_probe_with_probe_off_trains_the_head_in_epochs(place: Path) -> None:
    run = fit(place, "run", "--unfreeze", "linear_probe", "--epochs", 2, "probe.enabled=off")
    assert [row["epoch"] for row in read_rows(run)] == ["1", "2"]
    assert (run / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", 3), "trainer.epochs=3 cannot apply to unfreeze.name=linear_probe"),
        (
            ("loss.label_smoothing=0.2",),
            "loss.label_smoothing=0.2 cannot apply to unfreeze.name=linear_probe",
        ),
        (("augment.mixup=0.2",), "augment.mixup=0.2 cannot apply to unfreeze.name=linear_probe"),
    ],
)
def test_linear_probe_inapplicable_option_exits_with_2(
    options: tuple[object, ...], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(build_command(place, *options, "--unfreeze", "linear_probe")) == 2
    assert message in " ".join(capsys.readouterr().err.split())


DEEP = (
    "probe.depth=2", "probe.last_stage_epochs=4", "optim.lr=3e-3", "optim.backbone_lr_scale=1",
    "--augment", "none",
)  # fmt: skip


def test_deep_probe_bundle_has_the_reported_metrics(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    force_last_stage_improvement(monkeypatch)
    run = fit(place, "run", "--unfreeze", "linear_probe", "trainer.monitor=loss", *DEEP)
    output = read_stdout(capsys)
    assert re.search(r"layer4 and head at learning rates 0\.003 and 0\.003, 4 epochs", output)
    assert re.search(r"logistic regression.*adamw, cosine.* 8, 32-true on cpu", output)
    assert re.search(r"Last stage: .* after epoch \d", output)
    (row,) = read_rows(run)
    metrics = evaluate(run)
    for name in ("accuracy", "loss", "macro_f1", "balanced_accuracy"):
        assert metrics[name] == pytest.approx(float(row[f"val/{name}"]), abs=1e-4)
    before = torch.load(place / "weights.pth", weights_only=True)
    after = load_weights(run, "best")
    moved = {n for n, t in before.items() if not torch.equal(after[f"classifier.network.{n}"], t)}
    assert {name.partition(".")[0] for name in moved} == {"fc", "layer4"}


def test_deep_probe_interrupted_in_the_last_stage_resumes_bit_identically(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    force_last_stage_improvement(monkeypatch)
    options = ("--unfreeze", "linear_probe", "trainer.monitor=loss", *DEEP)
    reference = fit(place, "reference", *options)
    run = place / "run"

    def interrupt(*args: Any, **kwargs: Any) -> Iterator[float]:
        yield from (0.5, 0.5, 0.5)
        raise ConfigError("interrupted by the test")

    with monkeypatch.context() as patch:
        patch.setattr("finetune.probe.last_stage.iter_training_epochs", interrupt)
        assert run_command(build_command(place, "--output", run, *options)) == 2
    assert not (run / "checkpoints" / "best.ckpt").exists()
    capsys.readouterr()
    assert run_command(["fit", "--resume", str(run)]) == 0
    assert "39 of 39 images had cached features" in read_stdout(capsys)
    assert_same_bits(load_weights(run, "best"), load_weights(reference, "best"))


def test_deep_probe_plan_has_groups_epochs_and_cache_size(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--unfreeze", "linear_probe", "--dry-run", "--json")
    assert run_command(build_command(place, *DEEP, *options)) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["probe"]["last_stage"]["groups"] == ["head", "layer4"]
    assert plan["probe"]["last_stage"]["epochs"] == 4
    # activations of 192 channels, a sixteenth as high and wide as the images
    num_bytes = (24 + 15) * 192 * (32 // 16) ** 2 * 4
    assert plan["probe"]["last_stage"]["activations_gb"] == pytest.approx(num_bytes / 1e9, abs=1e-6)
    keys = {row["key"] for row in plan["recipe"]}
    assert "optim.layer_decay" in keys
    assert "trainer.epochs" not in keys


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--unfreeze", "linear_probe"),
        ("--unfreeze", "linear_probe", "trainer.monitor=loss", *DEEP),
        ("--unfreeze", "all", "--epochs", "2", "optim.name=sgd"),
        ("--unfreeze", "all", "--epochs", "1", "optim.name=sgd", *DEEP),
    ],
    ids=["linear_probe", "deeper", "all", "all after deeper"],
)
def test_probe_on_two_processes_matches_one_process(options: tuple[str, ...], place: Path) -> None:
    options += ("calibration.enabled=on",)
    single = fit(place, "single", *options)
    run = place / "two"
    command = build_command(place, "--output", run, *options, "--devices", 2)
    own_cache = {"FINETUNE_CACHE": str(place / "another")}
    process = run_finetune(place, *command, extra=own_cache)
    assert process.returncode == 0, process.stderr
    # the check of the augmentation may have extracted a part of them
    assert not re.search(r"(\d+) of \1 images had cached features", process.stdout)
    for name, tensor in load_weights(single, "best").items():
        torch.testing.assert_close(load_weights(run, "best")[name], tensor, rtol=1e-5, atol=1e-5)
    calibrations = [
        read_card_json(place / name / "bundle")["facts"]["calibration"]
        for name in ("two", "single")
    ]
    temperatures = [calibration["fitted_temperature"] for calibration in calibrations]
    assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-3)
    for row, other in zip(read_rows(run), read_rows(single), strict=True):
        for name in drop_times(row):  # the probe has no learning rates
            actual, expected = (float(values[name] or "nan") for values in (row, other))
            assert actual == pytest.approx(expected, rel=1e-5, abs=1e-5, nan_ok=True), name
