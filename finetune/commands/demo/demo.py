"""Demonstration of fine-tuning on the handwritten digits that ship with scikit-learn.

A small network is trained on the digits 0 to 4. Its backbone is then fine-tuned on the digits 5 to
9, with few and imbalanced training images, and compared with the same network trained from scratch.
All three runs use ``fit`` on a folder.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from finetune.commands.fit.fit import fit
from finetune.commands.fit.single_run import FitResult
from finetune.config.load import build_config
from finetune.data.transforms.presets import build_digits_pipeline, save_pipeline
from finetune.system import run_folder
from finetune.system.files import write_folder_atomically
from finetune.types import Reporter
from finetune.units import format_count

BACKBONE = "resnet10t"
IMAGE_SIZE = 32
TRAIN_COUNTS = {"five": 16, "six": 10, "seven": 7, "eight": 5, "nine": 4}
"""Training images per class of the second task: few and imbalanced."""

_CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUM_VAL = 15
_NUM_PRETRAIN_IMAGES = 100
_PRETRAIN_EPOCHS = 5
_FIT_OPTIONS: Mapping[str, Any] = {"epochs": 10, "batch_size": 16, "lr": 3e-3}


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Results of the fine-tuned run and of the run from scratch.

    Attributes:
        folder: Folder of the data and the runs.
        pretrained: Result of the run fine-tuned from the network of the digits 0 to 4.
        scratch: Result of the run from scratch.
        seconds: Total duration.
    """

    folder: Path
    pretrained: FitResult
    scratch: FitResult
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        metrics = {
            "finetuned": dict(self.pretrained.metrics["test"]),
            "from_scratch": dict(self.scratch.metrics["test"]),
        }
        return {
            "folder": str(self.folder),
            "run_dir": str(self.pretrained.run_dir),
            "seconds": round(self.seconds, 3),
            "accuracy": {name: values["accuracy"] for name, values in metrics.items()},
            "metrics": metrics,
        }


def demo(output: Path | None = None, *, reporter: Reporter | None = None) -> DemoResult:
    """Fine-tune a network on few images of new digits, and train one from scratch on the same.

    Args:
        output: Folder for the data and the runs; None takes ``runs/<date>-demo``.
        reporter: Receiver of progress and notes.

    Raises:
        FinetuneError: The folder is not empty, or a run fails; the message names the remedy.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    date = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = output or Path("runs") / f"{date}-demo"
    run_folder.check_unused(folder)
    with write_folder_atomically(folder / "data") as data:
        write_digits(data)
        save_pipeline(build_digits_pipeline(IMAGE_SIZE), data / "augment.json")
    source_data, target_data = folder / "data" / "digits-0-4", folder / "data" / "digits-5-9"

    reporter.note("[1/3] Training a small network on the digits 0 to 4.")
    source = _fit(source_data, folder / "pretrain", reporter, epochs=_PRETRAIN_EPOCHS)
    num_images = format_count(sum(TRAIN_COUNTS.values()), "image")
    reporter.note(f"\n[2/3] Training a network on {num_images} of the digits 5 to 9, from scratch.")
    scratch = _fit(target_data, folder / "scratch", reporter, **_FIT_OPTIONS)
    reporter.note(f"\n[3/3] Fine-tuning the network of step 1 on the same {num_images}.")
    weights = str(source.run_dir / "bundle")
    pretrained = _fit(target_data, folder / "finetune", reporter, weights=weights, **_FIT_OPTIONS)
    return DemoResult(folder, pretrained, scratch, time.monotonic() - start)


def write_digits(folder: Path) -> None:
    """Write the digits of scikit-learn as two image folders: 0 to 4, and 5 to 9 with few images."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images_by_class: dict[str, list[Any]] = {name: [] for name in _CLASS_NAMES}
    for row in order:
        images_by_class[_CLASS_NAMES[digits.target[row]]].append(digits.images[row])
    for number, (name, images) in enumerate(images_by_class.items()):
        if number < 5:
            splits = {"train": images[:_NUM_PRETRAIN_IMAGES], "val": images[-_NUM_VAL:]}
            _write_class(folder / "digits-0-4", name, splits)
        else:
            num_train = TRAIN_COUNTS[name]
            splits = {
                "train": images[:num_train],
                "val": images[num_train : num_train + _NUM_VAL],
                "test": images[num_train + _NUM_VAL :],
            }
            _write_class(folder / "digits-5-9", name, splits)


def _write_class(root: Path, name: str, splits: Mapping[str, list[Any]]) -> None:
    for split, images in splits.items():
        target = root / split / name
        target.mkdir(parents=True)
        for number, image in enumerate(images):
            pixels = Image.fromarray((image * 255 / 16).astype(np.uint8))
            pixels.resize((IMAGE_SIZE, IMAGE_SIZE)).save(target / f"{number:03}.png")


def _fit(
    data: Path,
    output: Path,
    reporter: Reporter,
    *,
    epochs: int,
    weights: str = "random",
    batch_size: int = 32,
    lr: float = 1e-3,
) -> FitResult:
    config = build_config(
        {
            "data": {"path": str(data), "image_size": IMAGE_SIZE},
            "model": {"backbone": BACKBONE, "weights": weights},
            # the automatic rate without pretrained weights is too low for so few steps
            "optim": {"lr": lr, "backbone_lr_scale": 1.0} if weights == "random" else {},
            "augment": {"name": str(data.parent / "augment.json")},
            "imbalance": {"strategy": "sqrt"},
            "trainer": {"epochs": epochs, "batch_size": batch_size, "accelerator": "cpu"},
            "output": str(output),
        }
    )
    return fit(config, reporter=reporter)
