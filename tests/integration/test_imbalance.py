"""Runs on classes of unequal size: strategies, several processes, resume, and the plan."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from finetune.builders import build_training
from finetune.cli.main import run as run_command
from finetune.config.imbalance import IMBALANCE_STRATEGIES
from finetune.data.samplers.sampling_weights import count_draws
from tests.support.runs import (
    assert_same_bits,
    build_photo_manifest,
    compute_largest_difference,
    create_small_config,
    load_checkpoint,
    load_weights,
    read_rows,
    run_finetune,
    write_photos,
    write_weights,
)

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]

TRAIN_IMAGES = (16, 8, 5)
NUM_EPOCHS = 3
BATCH_SIZE = 8
WHOLE_RUNS = ("undersample", "drw", "logit_adjusted", "oversample")

CONFIG = f"""
data: {{image_size: 32, num_workers: 0}}
model: {{backbone: test_resnet, weights: weights.pth, batch_norm: frozen}}
unfreeze: {{name: all}}
augment: {{name: light}}
optim: {{name: sgd, lr: 0.1, backbone_lr_scale: 1, layer_decay: 1, weight_decay: 0}}
report: {{enabled: "off"}}
trainer: {{epochs: {NUM_EPOCHS}, batch_size: {BATCH_SIZE}, precision: 32-true, accelerator: cpu}}
"""

# a user-defined schedule that fails after some steps, once
STOPPER = """
import os

def stopping(progress):
    if os.environ.get("STOP") and progress > float(os.environ["STOP"]):
        raise RuntimeError("stopped by the test")
    return 1 - progress
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with classes of 16, 8 and 5 photos, weights and the schedule."""
    folder = tmp_path_factory.mktemp("imbalance")
    write_photos(folder / "photos", num_train=max(TRAIN_IMAGES))
    for name, count in zip(("ant", "bee", "cow"), TRAIN_IMAGES, strict=True):
        for file in sorted((folder / "photos" / "train" / name).iterdir())[count:]:
            file.unlink()
    write_weights(folder / "weights.pth")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "imbalance_stopper.py").write_text(STOPPER)
    return folder


def build_fit_args(place: Path, output: Path, *more: object) -> list[str]:
    args = ("--config", place / "config.yaml", "--weights", place / "weights.pth")
    return ["fit", *map(str, (place / "photos", *args, "--output", output, *more))]


def read_output(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the printed text with single spaces."""
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


def get_images_per_epoch(strategy: str) -> int:
    return {"oversample": 48, "undersample": 15}.get(strategy, sum(TRAIN_IMAGES))


def get_label_smoothing(strategy: str) -> float:
    chosen = IMBALANCE_STRATEGIES[strategy]
    is_smoothed = chosen.loss in ("cross_entropy", "focal")
    return 0.1 if is_smoothed and chosen.head_rebalancing != "post_hoc" else 0.0


@pytest.mark.parametrize("strategy", IMBALANCE_STRATEGIES)
def test_strategy_builds_its_sampler_class_weights_and_loss(strategy: str, place: Path) -> None:
    config = create_small_config(
        model__weights=str(place / "weights.pth"),
        trainer__epochs=NUM_EPOCHS,
        trainer__batch_size=BATCH_SIZE,
        imbalance__strategy=strategy,
    )
    training = build_training(config, build_photo_manifest(place / "photos"))
    chosen, resolved = IMBALANCE_STRATEGIES[strategy], training.config
    assert resolved.imbalance.sampler == chosen.sampler
    assert resolved.imbalance.class_weights == chosen.class_weights
    assert resolved.loss.name == chosen.loss
    assert resolved.loss.label_smoothing == get_label_smoothing(strategy)
    assert training.images_per_epoch == get_images_per_epoch(strategy)
    assert training.steps_per_epoch == get_images_per_epoch(strategy) // BATCH_SIZE
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    for epoch in range(NUM_EPOCHS):
        sampling = training.datamodule.sampling_schedule(epoch)
        assert count_draws(sampling, sum(TRAIN_IMAGES)) == get_images_per_epoch(strategy)
        assert training.module.recipe.criterion_schedule(epoch)(logits, target).isfinite()


@pytest.mark.parametrize(
    "strategy",
    [*WHOLE_RUNS[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE_RUNS[2:])],
)
def test_fit_with_strategy_trains_and_stores_it(
    strategy: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert run_command(build_fit_args(place, run, "--imbalance", strategy)) == 0
    assert strategy in read_output(capsys)
    assert [row["epoch"] for row in read_rows(run)] == ["0", "1", "2", "3"]
    stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    chosen = IMBALANCE_STRATEGIES[strategy]
    assert stored["imbalance"]["sampler"] == chosen.sampler
    assert stored["imbalance"]["class_weights"] == chosen.class_weights
    assert stored["loss"]["name"] == chosen.loss
    assert stored["loss"]["label_smoothing"] == get_label_smoothing(strategy)
    steps = get_images_per_epoch(strategy) // BATCH_SIZE
    assert load_checkpoint(run)["global_step"] == NUM_EPOCHS * steps


@pytest.mark.slow
@pytest.mark.parametrize("strategy", WHOLE_RUNS)
def test_fit_with_strategy_on_two_processes_equals_one(
    strategy: str, place: Path, tmp_path: Path
) -> None:
    more = ("--imbalance", strategy, "probe.enabled=off")
    assert run_command(build_fit_args(place, tmp_path / "1", *more)) == 0
    process = run_finetune(place, *build_fit_args(place, tmp_path / "2", *more, "--devices", 2))
    assert process.returncode == 0, process.stderr
    assert (
        compute_largest_difference(load_weights(tmp_path / "1"), load_weights(tmp_path / "2"))
        <= 1e-6
    )
    for row, other in zip(read_rows(tmp_path / "1"), read_rows(tmp_path / "2"), strict=True):
        assert float(row["train/loss"]) == pytest.approx(float(other["train/loss"]), abs=1e-5)


@pytest.mark.parametrize(
    ("strategy", "stop"),
    [
        ("oversample", 0.4),
        pytest.param("abundant_first", 0.6, marks=pytest.mark.slow),
        pytest.param("progressive", 0.6, marks=pytest.mark.slow),
        pytest.param("drw", 0.85, marks=pytest.mark.slow),
    ],
)
def test_failed_run_with_strategy_resumes_bit_identically(
    strategy: str, stop: float, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "imbalance_stopper", raising=False)
    more = (
        "--imbalance", strategy, "lr_schedule.name=imbalance_stopper:stopping", "probe.enabled=off",
    )  # fmt: skip
    assert run_command(build_fit_args(place, tmp_path / "expected", *more)) == 0
    monkeypatch.setenv("STOP", str(stop))
    assert run_command(build_fit_args(place, tmp_path / "run", *more)) == 1
    monkeypatch.delenv("STOP")
    assert run_command(["fit", "--resume", str(tmp_path / "run")]) == 0
    assert_same_bits(load_weights(tmp_path / "run"), load_weights(tmp_path / "expected"))


def test_batch_larger_than_undersampled_epoch_is_reduced_and_resumes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--imbalance", "undersample", "--batch-size", 20, "resume=auto", "probe.enabled=off")
    args = build_fit_args(place, tmp_path / "run", *more)
    assert run_command(args) == 0
    output = read_output(capsys)
    assert "Batch size 15 instead of 20" in output
    assert "15 of 29 images per epoch" in output
    assert run_command(args) == 0
    assert "--epochs" in read_output(capsys), "the run is complete"


def test_rare_class_preset_applies_to_rare_classes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = (
        "augment.rare_class_preset=strong",
        "augment.rare_class_fraction=0.4",
        "data.cache=on",
        "probe.enabled=off",
    )
    assert run_command(build_fit_args(place, run, *more)) == 0
    assert "strong for cow" in read_output(capsys)
    stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    # the smallest crops of strong have a fifth of the image's area, those of light a half
    assert stored["data"]["cache_shorter_side"] == 72


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--imbalance", "none"), ["none"]),
        (("--imbalance", "sqrt"), ["sqrt: sampler sqrt"]),
        (("--imbalance", "drw"), ["drw: class weights effective_number from epoch 3"]),
        (
            ("--imbalance", "focal", "imbalance.class_weights=balanced"),
            ["focal: class weights balanced", "loss focal (probe: cross_entropy)"],
        ),
        (("--imbalance", "logit_adjusted"), ["logit_adjusted: loss logit_adjusted"]),
    ],
)
def test_plan_shows_sampler_class_weights_and_loss(
    args: tuple[str, ...],
    expected: list[str],
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(build_fit_args(place, tmp_path / "run", *args, "--dry-run")) == 0
    output = read_output(capsys)
    assert all(text in output for text in expected)


def test_double_correction_exits_2_and_names_both_settings(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--imbalance", "weighted", "loss.name=logit_adjusted")
    args = build_fit_args(place, tmp_path / "run", *more)
    assert run_command(args) == 2
    message = read_output(capsys)
    assert "imbalance.sampler=weighted" in message
    assert "loss.name=logit_adjusted" in message
    assert run_command([*args, "imbalance.allow_double_correction=true", "--dry-run"]) == 0
