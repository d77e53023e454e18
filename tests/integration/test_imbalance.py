"""Whole runs on classes of unequal size, by every strategy, alone and shared by two processes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from finetune.cli.main import run as run_command
from finetune.config.imbalance import IMBALANCE_STRATEGIES
from tests.support.networks import one_thread
from tests.support.runs import (
    assert_same_bits,
    checkpoint,
    finetune,
    largest_difference,
    rows,
    weights,
    write_photos,
    write_weights,
)

TRAIN_IMAGES = (16, 8, 5)
QUICK = ("undersample", "drw", "logit_adjusted")

CONFIG = """
data: {image_size: 32, num_workers: 0}
model: {backbone: test_resnet, weights: weights.pth, batch_norm: frozen}
unfreeze: {name: all}
augment: {name: light}
optim: {name: sgd, lr: 0.1, backbone_lr_scale: 1, layer_decay: 1, weight_decay: 0}
trainer: {epochs: 3, batch_size: 8, precision: 32-true, accelerator: cpu}
"""

# a learning rate of the user's own that fails after some steps, once
STOPPER = """
import os

def stopping(progress):
    if os.environ.get("STOP") and progress > float(os.environ["STOP"]):
        raise RuntimeError("stopped by the test")
    return 1 - progress
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos of classes of 16, 8 and 5, weights and the user's own code."""
    folder = tmp_path_factory.mktemp("imbalance")
    write_photos(folder / "photos", num_train=max(TRAIN_IMAGES))
    for name, count in zip(("ant", "bee", "cow"), TRAIN_IMAGES, strict=True):
        for file in sorted((folder / "photos" / "train" / name).iterdir())[count:]:
            file.unlink()
    write_weights(folder / "weights.pth")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "imbalance_stopper.py").write_text(STOPPER)
    return folder


def words(place: Path, output: Path, *more: object) -> list[str]:
    given = ("--config", place / "config.yaml", "--weights", place / "weights.pth")
    return ["fit", *map(str, (place / "photos", *given, "--output", output, *more))]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed, words with one space between."""
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


def slow_unless_quick(name: str) -> object:
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("strategy", [slow_unless_quick(name) for name in IMBALANCE_STRATEGIES])
def test_every_strategy_trains_and_is_written_out(
    strategy: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert run_command(words(place, run, "--imbalance", strategy)) == 0
    assert f"imbalance {strategy}" in said(capsys)
    assert [row["epoch"] for row in rows(run)] == ["0", "1", "2", "3"]
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    chosen = IMBALANCE_STRATEGIES[strategy]
    is_smoothed = (
        chosen.loss in ("cross_entropy", "focal") and chosen.head_rebalancing != "post_hoc"
    )
    smoothing = 0.1 if is_smoothed else 0.0
    assert written["imbalance"]["sampler"] == chosen.sampler
    assert written["imbalance"]["class_weights"] == chosen.class_weights
    assert written["loss"]["name"] == chosen.loss
    assert written["loss"]["label_smoothing"] == smoothing
    size = {"oversample": 48, "undersample": 15}.get(strategy, 29)
    assert checkpoint(run)["global_step"] == 3 * (size // 8)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [*QUICK, "oversample"])
def test_two_processes_end_as_one_does(strategy: str, place: Path, tmp_path: Path) -> None:
    more = ("--imbalance", strategy, "probe.enabled=off")
    assert run_command(words(place, tmp_path / "1", *more)) == 0
    ended = finetune(place, *words(place, tmp_path / "2", *more, "--devices", 2))
    assert ended.returncode == 0, ended.stderr
    assert largest_difference(weights(tmp_path / "1"), weights(tmp_path / "2")) <= 1e-6
    for row, other in zip(rows(tmp_path / "1"), rows(tmp_path / "2"), strict=True):
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
def test_a_broken_off_run_goes_on_to_the_same_bits(
    strategy: str, stop: float, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "imbalance_stopper", raising=False)
    more = (
        "--imbalance", strategy, "lr_schedule.name=imbalance_stopper:stopping", "probe.enabled=off",
    )  # fmt: skip
    assert run_command(words(place, tmp_path / "whole", *more)) == 0
    monkeypatch.setenv("STOP", str(stop))
    assert run_command(words(place, tmp_path / "run", *more)) == 1
    monkeypatch.delenv("STOP")
    assert run_command(["fit", "--resume", str(tmp_path / "run")]) == 0
    assert_same_bits(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_the_same_command_goes_on_though_its_batch_shrank(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--imbalance", "undersample", "--batch-size", 20, "resume=auto", "probe.enabled=off")
    given = words(place, tmp_path / "run", *more)
    assert run_command(given) == 0
    first = said(capsys)
    assert "Batch size 15 instead of 20: an epoch draws 15 training images." in first
    assert "undersample: images by undersample, 15 of 29 an epoch" in first
    assert run_command(given) == 0
    assert "nothing is left to do" in said(capsys)


def test_rare_classes_are_seen_in_more_varied_views(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = (
        "augment.rare_class_preset=strong",
        "augment.rare_class_fraction=0.4",
        "data.cache=on",
        "probe.enabled=off",
    )
    assert run_command(words(place, run, *more)) == 0
    assert "augment light; strong for cow" in said(capsys)
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    # the smallest crops of strong have a fifth of an image's area, those of light the half
    assert written["data"]["cache_shorter_side"] == 72


@pytest.mark.parametrize(
    ("words_of_it", "expected"),
    [
        (("--imbalance", "none"), "imbalance none best by"),
        (("--imbalance", "sqrt"), "imbalance sqrt: images by sqrt best by"),
        (
            ("--imbalance", "drw"),
            "imbalance drw: class weights effective_number from epoch 3 on best by",
        ),
        (
            ("--imbalance", "focal", "imbalance.class_weights=balanced"),
            "imbalance focal: class weights balanced; loss focal (the probe: cross_entropy) best",
        ),
        (("--imbalance", "logit_adjusted"), "logit_adjusted: loss logit_adjusted best by"),
    ],
)
def test_the_plan_says_what_is_done(
    words_of_it: tuple[str, ...],
    expected: str,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(words(place, tmp_path / "run", *words_of_it, "--dry-run")) == 0
    assert expected in said(capsys)


def test_a_double_correction_names_both_settings(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(place, tmp_path / "run", "--imbalance", "weighted", "loss.name=logit_adjusted")
    assert run_command(given) == 2
    refusal = said(capsys)
    assert "imbalance.sampler=weighted draws rare classes more often" in refusal
    assert "loss.name=logit_adjusted" in refusal
    assert run_command([*given, "imbalance.allow_double_correction=true", "--dry-run"]) == 0
