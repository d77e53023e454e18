"""Runs that are a probe, that begin with one, and that do not beat it."""

import json
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
from tests.support.networks import one_thread
from tests.support.runs import (
    assert_same_bits,
    checkpoint,
    finetune,
    let_the_head_be_poor,
    rows,
    weights,
    write_photos,
    write_weights,
)
from tests.support.wandb_file import read_offline_runs

SMALL = (
    "data.image_size=32", "data.num_workers=0", "model.backbone=test_resnet",
    "trainer.batch_size=8", "trainer.precision=32-true", "trainer.accelerator=cpu",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with photos that are easily told apart, weights and an empty cache."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos")
    write_weights(tmp_path / "weights.pth")
    return tmp_path


def fit(place: Path, name: str, *more: object) -> Path:
    """Fit in this process; it must end well. Return the run folder."""
    run = place / name
    given = ("fit", place / "photos", "--weights", place / "weights.pth", "--output", run)
    assert run_command([str(word) for word in (*given, *SMALL, *more)]) == 0
    return run


def score(run: Path, row: int, metric: str = "accuracy") -> float:
    return float(rows(run)[row][f"val/{metric}"])


def measured(run: Path) -> dict[str, float]:
    """Return what the finished model comes to on the validation images."""
    metrics: dict[str, float] = api.evaluate(run).to_json()["metrics"]
    return metrics


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_linear_probe_is_a_run_like_any_other(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(place, "run", "--unfreeze", "linear_probe")
    shown = said(capsys)
    assert "a head fitted to what the frozen backbone says of each image, also in a mirror" in shown
    assert "logistic regression until nothing improves" in shown
    assert "epochs of" not in shown
    (row,) = rows(run)
    assert row["epoch"] == "1"
    assert not (run / "checkpoints" / "last.ckpt").exists(), "there is nothing to resume"
    found = measured(run)
    for name in ("accuracy", "loss", "macro_f1", "balanced_accuracy"):
        assert found[name] == pytest.approx(float(row[f"val/{name}"]), abs=1e-4)
    assert run_command(["fit", "--resume", str(run)]) == 0
    assert "complete; nothing is left to do" in said(capsys)
    assert len(rows(run)) == 1


def test_the_backbone_stays_as_it_was(place: Path) -> None:
    run = fit(place, "run", "--unfreeze", "linear_probe")
    before = torch.load(place / "weights.pth", weights_only=True)
    after = weights(run, "best")
    for name, tensor in before.items():
        if not name.startswith("fc."):
            assert torch.equal(after[f"classifier.network.{name}"], tensor), name


def test_another_probe_of_the_same_images_asks_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(place, "first", "--unfreeze", "linear_probe")
    assert "known from before" not in said(capsys)
    fit(place, "second", "--unfreeze", "linear_probe", "--imbalance", "class_weights")
    assert "39 of them known from before" in said(capsys)


def test_fine_tuning_begins_with_the_probe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = fit(place, "probe", "--unfreeze", "linear_probe")
    capsys.readouterr()
    run = fit(place, "run", "--unfreeze", "all", "--epochs", 1, "optim.lr=1e-12")
    assert "what fine-tuning begins with and must beat" in said(capsys)
    assert [row["epoch"] for row in rows(run)] == ["0", "1"]
    assert score(run, 0, "loss") == pytest.approx(score(probe, 0, "loss"), abs=1e-6)
    assert score(run, 1, "loss") == pytest.approx(score(run, 0, "loss"), abs=1e-4)


def test_what_follows_the_probe_trains_with_live_statistics_and_dropout(place: Path) -> None:
    words = ("--unfreeze", "all", "--epochs", 1, "model.batch_norm=train", "optim.lr=1e-9")
    before = torch.load(place / "weights.pth", weights_only=True)
    losses = []
    for name, rate in (("plain", 0), ("dropout", 0.9)):
        run = fit(place, name, *words, f"model.drop_rate={rate}", "--augment", "none")
        moved = weights(run)["classifier.network.bn1.running_mean"]
        assert not torch.allclose(moved, before["bn1.running_mean"])
        losses.append(float(rows(run)[1]["train/loss"]))
    assert losses[1] > losses[0] + 0.1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_no_learning_rate_ends_below_the_probe(
    optimizer: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a rate at which training falls apart without becoming infinite
    run = fit(
        place, "run", "--unfreeze", "all", "--epochs", 2, "optim.lr=0.1", "trainer.monitor=loss",
        f"optim.name={optimizer}", "optim.backbone_lr_scale=1",
    )  # fmt: skip
    shown = said(capsys)
    assert score(run, -1, "loss") > score(run, 0, "loss")
    assert "No epoch beat the probe on val/loss: the best model is the probe's." in shown
    assert measured(run)["loss"] == pytest.approx(score(run, 0, "loss"), abs=1e-4)


def test_wandb_shows_what_was_to_be_beaten(place: Path) -> None:
    run = fit(place, "run", "--unfreeze", "all", "--epochs", 1, "--wandb", "offline")
    (part,) = read_offline_runs(run)
    assert part.summary["probe/val/accuracy"] == pytest.approx(score(run, 0))
    assert "final/val/accuracy" in part.summary


def test_an_epoch_that_beats_the_probe_is_the_best_model(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = partial(fit_head, penalties=(10.0,))
    monkeypatch.setattr("finetune.probe.linear_probe.fit_head", weak)
    run = fit(
        place, "run", "--unfreeze", "all", "--epochs", 4, "optim.lr=1e-3", "--augment", "none",
        "optim.backbone_lr_scale=1", "trainer.monitor=loss", "loss.label_smoothing=0",
    )  # fmt: skip
    losses = [score(run, row, "loss") for row in range(5)]
    assert min(losses) < losses[0]
    assert "epoch" in checkpoint(run, "best")
    assert measured(run)["loss"] == pytest.approx(min(losses), abs=1e-4)


def test_a_run_that_was_ended_after_its_probe_ends_alike(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--unfreeze", "all", "--epochs", 2)
    whole = fit(place, "whole", *words)
    import finetune.commands.fit.train as train

    def broken(*args: Any, **more: Any) -> None:
        raise ConfigError("ended by the test")

    run = place / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "create_trainer", broken)
        given = ("fit", place / "photos", "--weights", place / "weights.pth", "--output", run)
        assert run_command([str(word) for word in (*given, *SMALL, *words)]) == 2
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert run_command(["fit", "--resume", str(run)]) == 0
    assert_same_bits(weights(run), weights(whole))
    assert [{**row, "seconds": ""} for row in rows(run)] == [
        {**row, "seconds": ""} for row in rows(whole)
    ]


def test_without_a_probe_the_head_is_trained_in_epochs(place: Path) -> None:
    run = fit(place, "run", "--unfreeze", "linear_probe", "--epochs", 2, "probe.enabled=off")
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    assert (run / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--epochs", 3), "trainer.epochs cannot apply to unfreeze.name=linear_probe"),
        (
            ("loss.label_smoothing=0.2",),
            "loss.label_smoothing cannot apply to unfreeze.name=linear_probe",
        ),
        (("augment.mixup=0.2",), "augment.mixup cannot apply to unfreeze.name=linear_probe"),
    ],
)
def test_what_a_probe_does_not_do_is_refused(
    words: tuple[object, ...], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("fit", place / "photos", "--weights", place / "weights.pth", *SMALL, *words)
    assert run_command([*map(str, given), "--unfreeze", "linear_probe"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


DEEP = (
    "probe.depth=2", "probe.last_stage_epochs=4", "optim.lr=3e-3", "optim.backbone_lr_scale=1",
    "--augment", "none",
)  # fmt: skip


def test_a_probe_that_goes_deeper_ships_what_it_measured(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_the_head_be_poor(monkeypatch)
    run = fit(place, "run", "--unfreeze", "linear_probe", "trainer.monitor=loss", *DEEP)
    shown = said(capsys)
    assert "then layer4 and head at rates of 0.003 and 0.003, 4 passes over kept maps" in shown
    assert "until nothing improves, then adamw, cosine, batches of 8, 32-true on cpu" in shown
    assert "The last layers, after pass " in shown
    (row,) = rows(run)
    found = measured(run)
    for name in ("accuracy", "loss", "macro_f1", "balanced_accuracy"):
        assert found[name] == pytest.approx(float(row[f"val/{name}"]), abs=1e-4)
    before = torch.load(place / "weights.pth", weights_only=True)
    after = weights(run, "best")
    moved = {n for n, t in before.items() if not torch.equal(after[f"classifier.network.{n}"], t)}
    assert {name.partition(".")[0] for name in moved} == {"fc", "layer4"}


def test_a_probe_that_was_ended_while_it_went_deeper_ends_alike(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    let_the_head_be_poor(monkeypatch)
    words = ("--unfreeze", "linear_probe", "trainer.monitor=loss", *DEEP)
    whole = fit(place, "whole", *words)
    run = place / "run"
    given = ("fit", place / "photos", "--weights", place / "weights.pth", "--output", run)
    told = iter(range(3))

    def ended() -> Iterator[float]:
        for _ in told:
            yield 0.5
        raise ConfigError("ended by the test")

    with monkeypatch.context() as patch:
        patch.setattr("finetune.probe.last_stage.iter_training_passes", lambda *_, **__: ended())
        assert run_command([str(word) for word in (*given, *SMALL, *words)]) == 2
    assert not (run / "checkpoints" / "best.ckpt").exists()
    capsys.readouterr()
    assert run_command(["fit", "--resume", str(run)]) == 0
    assert "39 of them known from before" in said(capsys)
    assert_same_bits(weights(run, "best"), weights(whole, "best"))


def test_the_plan_of_a_deeper_probe_says_what_it_keeps(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("fit", place / "photos", "--weights", place / "weights.pth", *SMALL, *DEEP)
    words = [str(word) for word in (*given, "--unfreeze", "linear_probe", "--dry-run", "--json")]
    assert run_command(words) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["probe"]["last_stage"]["groups"] == ["head", "layer4"]
    assert plan["probe"]["last_stage"]["passes"] == 4
    # maps of 192 channels, a sixteenth as high and wide as the images
    kept = (24 + 15) * 192 * (32 // 16) ** 2 * 4
    assert plan["probe"]["last_stage"]["gigabytes"] == pytest.approx(kept / 1e9, abs=1e-6)
    keys = {row["key"] for row in plan["recipe"]}
    assert "optim.layer_decay" in keys
    assert "trainer.epochs" not in keys


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--unfreeze", "linear_probe"),
        ("--unfreeze", "linear_probe", "trainer.monitor=loss", *DEEP),
        ("--unfreeze", "all", "--epochs", "2", "optim.name=sgd"),
        ("--unfreeze", "all", "--epochs", "1", "optim.name=sgd", *DEEP),
    ],
    ids=["linear_probe", "deeper", "all", "all after deeper"],
)
def test_two_processes_share_the_probe_and_end_as_one_does(
    words: tuple[str, ...], place: Path
) -> None:
    words += ("calibration.enabled=on",)
    alone = fit(place, "alone", *words)
    run = place / "two"
    given = ("fit", place / "photos", "--weights", place / "weights.pth", "--output", run)
    own_cache = {"FINETUNE_CACHE": str(place / "another")}
    ended = finetune(place, *given, *SMALL, *words, "--devices", 2, extra=own_cache)
    assert ended.returncode == 0, ended.stderr
    assert "known from before" not in ended.stdout
    for name, tensor in weights(alone, "best").items():
        torch.testing.assert_close(weights(run, "best")[name], tensor, rtol=1e-5, atol=1e-5)
    said = [
        read_card_json(place / name / "bundle")["facts"]["calibration"] for name in ("two", "alone")
    ]
    assert said[0]["fitted"] == pytest.approx(said[1]["fitted"], rel=1e-3)
    for row, other in zip(rows(run), rows(alone), strict=True):
        for name in row.keys() - {"seconds"}:  # the probe has no learning rates
            found, wanted = (float(values[name] or "nan") for values in (row, other))
            assert found == pytest.approx(wanted, abs=1e-5, nan_ok=True), name
