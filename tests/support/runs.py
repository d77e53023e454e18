"""Small datasets and runs, in this process and in others, and readers of their files."""

import csv
import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.builders import Training, build_training
from finetune.commands.evaluate import EvaluateResult
from finetune.config.auto import choose_auto_values
from finetune.config.facts import Facts
from finetune.config.imbalance import apply_imbalance_strategy
from finetune.config.load import build_config, replace_values
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.models.backbone import create_network
from finetune.types import Evaluation, Sample, Split
from tests.support.networks import randomise

CLASSES = ("ant", "bee", "cow")
NUM_VAL = 5
"""Validation images per class: 15 in total, which are not divisible by two ranks."""

STEPS_PER_EPOCH = 3
NUM_EPOCHS = 6
GRADUAL_CONFIG = f"""
data: {{image_size: 32, num_workers: 0}}
model: {{backbone: test_resnet, weights: weights.pth, batch_norm: frozen}}
probe: {{enabled: "off"}}
unfreeze: {{name: gradual, params: {{start: 2, every: 2, step: 0.5}}}}
augment: {{name: light}}
optim: {{name: sgd, lr: 0.2, backbone_lr_scale: 1, layer_decay: 1, weight_decay: 0}}
lr_schedule: {{name: "stopper:stopping"}}
trainer: {{epochs: {NUM_EPOCHS}, batch_size: 8, precision: 32-true, accelerator: cpu}}
"""
"""Six epochs with three phases of two epochs each: depths 1, 1, 4, 4, 6, 6 of 6."""


def write_photos(root: Path, *, num_train: int = 8, size: int = 32) -> Path:
    """Write train and val folders of three classes with different mean colours and noise."""
    random = np.random.default_rng(11)
    for split, count in (("train", num_train), ("val", NUM_VAL)):
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                pixels = random.integers(0, 200, (size, size, 3))
                pixels[..., number] += 30
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image:02}.png")
    return root


def write_weights(file: Path, backbone: str = "test_resnet") -> Path:
    """Write backbone weights with changed BatchNorm statistics, as of a pretrained backbone."""
    network = create_network(backbone, num_classes=2, weights="random").module
    randomise(network)
    torch.save(network.state_dict(), file)
    return file


def build_photo_manifest(root: Path) -> Manifest:
    """Return the manifest of a folder written by ``write_photos``."""
    samples = tuple(
        Sample(file.relative_to(root).as_posix(), file.parent.name, Split(file.parts[-3]))
        for file in sorted(root.rglob("*.png"))
    )
    return Manifest(root, CLASSES, samples)


def build_listed_manifest(counts: dict[str, int]) -> Manifest:
    """Return a manifest of files that do not exist, with the given counts per class and split."""
    samples = [
        Sample(f"{split.value}/{name}/{number}.png", name, split)
        for split in (Split.TRAIN, Split.VAL)
        for name, count in counts.items()
        for number in range(count)
    ]
    return Manifest(Path("nowhere"), tuple(counts), tuple(samples))


def create_small_config(**assignments: object) -> Config:
    """Return the config of a run that takes seconds; ``section__key`` is a dotted key."""
    small: dict[str, object] = {
        "data.image_size": 32,
        "data.num_workers": 0,
        "model.backbone": "test_resnet",
        "model.weights": "random",
        "augment.name": "none",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.devices": 1,
        "trainer.batch_size": 8,
        "trainer.epochs": 2,
        "report.enabled": "off",
        "rejection.enabled": "off",
    }
    given = {key.replace("__", "."): value for key, value in assignments.items()}
    return build_config({}, assignments={**small, **given})


def create_resolved_config(**assignments: object) -> ResolvedConfig:
    """Return the resolved config of a small run with random weights, without building a network."""
    facts = Facts(
        class_counts=[8, 8, 8],
        is_pretrained=False,
        num_groups=6,
        image_size=32,
        has_fast_bf16=False,
        free_cores=1,
    )
    config = create_small_config(**{"loss__label_smoothing": 0.0, **assignments})
    chosen = choose_auto_values(config, facts)
    config = replace_values(config, {key: choice.value for key, choice in chosen.items()})
    return ResolvedConfig.from_config(apply_imbalance_strategy(config))


def create_small_training(root: Path, **assignments: object) -> Training:
    """Return the training objects of a small run."""
    return build_training(create_small_config(**assignments), build_photo_manifest(root))


def build_command(*words: object) -> list[str]:
    """Return the command line of finetune for a new process."""
    return [sys.executable, "-m", "finetune", *map(str, words)]


def build_environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return environment variables of a process: one thread, and ``folder`` on the module path."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **(extra or {})}


def accept_ctrl_c() -> None:
    """Reset SIGINT, which is ignored in background jobs of a shell and their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_finetune(folder: Path, *words: object, **options: Any) -> subprocess.Popen[str]:
    """Start a command in ``folder``, with one pipe for all that it prints.

    Args:
        folder: Working folder.
        words: Words of the command.
        options: Arguments of ``subprocess.Popen`` instead of these.
    """
    settings: dict[str, Any] = {
        "env": build_environment(folder),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "preexec_fn": accept_ctrl_c,
    }
    return subprocess.Popen(build_command(*words), cwd=folder, text=True, **(settings | options))


def run_finetune(
    folder: Path, *words: object, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder`` and return the completed process."""
    return subprocess.run(
        build_command(*words),
        cwd=folder,
        env=build_environment(folder, extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        preexec_fn=accept_ctrl_c,
    )


def load_checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    """Return the content of a checkpoint, loaded with ``weights_only``."""
    file = run / "checkpoints" / f"{name}.ckpt"
    loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return loaded


def load_weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    """Return the parameters and buffers of a run's checkpoint."""
    state: dict[str, Tensor] = load_checkpoint(run, name)["state_dict"]
    return state


def compute_largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest absolute difference between tensors of equal names."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Check that all tensors are bit-identical."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def read_rows(run: Path) -> list[dict[str, str]]:
    """Return the rows of ``metrics.csv``."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def drop_times(row: Mapping[str, str]) -> dict[str, str]:
    """Return a row of ``metrics.csv`` without what depends on the speed of the machine."""
    return {n: v for n, v in row.items() if n not in ("seconds", "images_per_second")}


def assert_close_rows(row: Mapping[str, str], other: Mapping[str, str]) -> None:
    """Check that rows of ``metrics.csv`` agree up to the rounding of sums in another order.

    Norms of gradients, sums over all weights, are of another scale than the metrics. A layer group
    that is frozen in the epoch has none.
    """
    assert row.keys() == other.keys()
    for name, value in drop_times(row).items():
        rel = 1e-4 if name.startswith(("grad_norm/", "weight_change/")) else None
        actual, expected = (float(text or "nan") for text in (value, other[name]))
        assert actual == pytest.approx(expected, rel=rel, abs=1e-6, nan_ok=True), name


def force_last_stage_improvement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every epoch of the last stage score higher than the linear head.

    With images as simple as these, the comparison depends on rounding and the processor.
    """
    scores = itertools.chain([-math.inf], itertools.count())
    monkeypatch.setattr("finetune.probe.last_stage._compute_score", lambda *_: next(scores))


def get_class_evaluation(result: EvaluateResult) -> Evaluation:
    """Return the evaluation of a model whose images have one class each."""
    assert isinstance(result.evaluation, Evaluation)
    return result.evaluation
