"""Small runs, in this process and in others, and what they left."""

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
from finetune.config.auto import choose_auto_values
from finetune.config.facts import Facts
from finetune.config.imbalance import apply_imbalance_strategy
from finetune.config.load import build_config, replace_values
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.models.backbone import create_network
from finetune.types import Sample, Split
from tests.support.networks import randomise

CLASSES = ("ant", "bee", "cow")
NUM_VAL = 5
"""Validation images of a class: 15 together, which two ranks cannot share evenly."""

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
    """Write train and val folders of three classes that differ in colour under noise."""
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
    """Write backbone weights with BatchNorm statistics of their own, as a pretrained one has."""
    network = create_network(backbone, num_classes=2, weights="random").module
    randomise(network)
    torch.save(network.state_dict(), file)
    return file


def manifest_of(root: Path) -> Manifest:
    """Return the manifest of what ``write_photos`` wrote."""
    samples = tuple(
        Sample(file.relative_to(root).as_posix(), file.parent.name, Split(file.parts[-3]))
        for file in sorted(root.rglob("*.png"))
    )
    return Manifest(root, CLASSES, samples)


def listed(counts: dict[str, int]) -> Manifest:
    """Return a manifest of files that nobody opens."""
    samples = [
        Sample(f"{split.value}/{name}/{number}.png", name, split)
        for split in (Split.TRAIN, Split.VAL)
        for name, count in counts.items()
        for number in range(count)
    ]
    return Manifest(Path("nowhere"), tuple(counts), tuple(samples))


def small_config(**assignments: object) -> Config:
    """Return the config of a run of seconds; ``section__key`` names a key of the tree."""
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
    }
    given = {key.replace("__", "."): value for key, value in assignments.items()}
    return build_config({}, assignments={**small, **given})


def resolved_config(**assignments: object) -> ResolvedConfig:
    """Return the resolved config of a small run with random weights, without building a network."""
    facts = Facts(
        class_counts=[8, 8, 8],
        is_pretrained=False,
        num_groups=6,
        image_size=32,
        has_fast_bf16=False,
        free_cores=1,
    )
    config = small_config(**{"loss__label_smoothing": 0.0, **assignments})
    chosen = choose_auto_values(config, facts)
    config = replace_values(config, {key: choice.value for key, choice in chosen.items()})
    return ResolvedConfig.from_config(apply_imbalance_strategy(config))


def small_training(root: Path, **assignments: object) -> Training:
    """Return the objects of a small run."""
    return build_training(small_config(**assignments), manifest_of(root))


def command(*words: object) -> list[str]:
    """Return the command line that runs finetune in a process of its own."""
    return [sys.executable, "-m", "finetune", *map(str, words)]


def environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment for a process: one thread, and the modules in ``folder``."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **(extra or {})}


def accept_ctrl_c() -> None:
    """Undo what a shell gives to its background jobs, which ignore Ctrl-C, and so would we."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finetune(
    folder: Path, *words: object, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder`` and return how it ended."""
    return subprocess.run(
        command(*words),
        cwd=folder,
        env=environment(folder, extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        preexec_fn=accept_ctrl_c,
    )


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    """Return what a checkpoint holds, without running anything of it."""
    file = run / "checkpoints" / f"{name}.ckpt"
    loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return loaded


def weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    """Return the parameters and buffers of a run's checkpoint."""
    state: dict[str, Tensor] = checkpoint(run, name)["state_dict"]
    return state


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any number in two sets of tensors of the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Fail unless all tensors are bit-identical."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def rows(run: Path) -> list[dict[str, str]]:
    """Return the rows of ``metrics.csv``."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def let_the_head_be_poor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any pass over the last layers beat the head of a probe.

    On pictures as simple as these whether one does is a matter of rounding, and of the processor.
    """
    scores = itertools.chain([-math.inf], itertools.count())
    monkeypatch.setattr("finetune.probe.last_stage._compute_score", lambda *_: next(scores))
