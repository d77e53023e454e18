"""What fine-tuning gains, shown on handwritten digits that come with scikit-learn.

A small network learns the digits 0 to 4; then its backbone, and beside it the same network from
scratch, learn 5 to 9 from few images of unequal numbers. Both go through ``fit`` on a folder.
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

from finetune.commands.fit.fit import FitResult, fit
from finetune.config.load import build_config
from finetune.data.transforms.presets import build_digits_pipeline, save_pipeline
from finetune.system import run_folder
from finetune.system.files import write_folder_atomically
from finetune.types import Reporter

BACKBONE = "resnet10t"
IMAGE_SIZE = 32
TRAIN_COUNTS = {"five": 16, "six": 10, "seven": 7, "eight": 5, "nine": 4}
"""Training images of the second task: few, and imbalanced."""

_CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUM_VAL = 15
_NUM_PRETRAIN_IMAGES = 100
_PRETRAIN_EPOCHS = 5
_FIT_OPTIONS: Mapping[str, Any] = {"epochs": 10, "batch_size": 16, "lr": 3e-3}


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The two accuracies and where everything lies.

    Attributes:
        folder: Data and runs.
        pretrained: The run that starts from the digits 0 to 4.
        scratch: The run that starts from nothing.
        seconds: Wall time of the whole.
    """

    folder: Path
    pretrained: FitResult
    scratch: FitResult
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
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
    """Fine-tune on few digits from a network that knows others, and from scratch.

    Args:
        output: Folder for data and runs; None takes ``runs/<date>-demo``.
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    date = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = output or Path("runs") / f"{date}-demo"
    run_folder.check_unused(folder)
    with write_folder_atomically(folder / "data") as data:
        write_digits(data)
        save_pipeline(build_digits_pipeline(IMAGE_SIZE), data / "augment.json")
    known, new = folder / "data" / "digits-0-4", folder / "data" / "digits-5-9"

    reporter.note("1/3  A small network learns the digits 0 to 4 from scratch.")
    source = _fit(known, folder / "pretrain", reporter, epochs=_PRETRAIN_EPOCHS)
    reporter.note(
        f"\n2/3  Another learns 5 to 9 from scratch: {sum(TRAIN_COUNTS.values())} images."
    )
    scratch = _fit(new, folder / "scratch", reporter, **_FIT_OPTIONS)
    reporter.note("\n3/3  The first one's backbone is fine-tuned on the same images.")
    weights = str(source.run_dir / "bundle")
    pretrained = _fit(new, folder / "finetune", reporter, weights=weights, **_FIT_OPTIONS)
    return DemoResult(folder, pretrained, scratch, time.monotonic() - start)


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits as two image folders: 0 to 4, and 5 to 9 with few to train on."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    of_class: dict[str, list[Any]] = {name: [] for name in _CLASS_NAMES}
    for row in order:
        of_class[_CLASS_NAMES[digits.target[row]]].append(digits.images[row])
    for number, (name, images) in enumerate(of_class.items()):
        if number < 5:
            splits = {"train": images[:_NUM_PRETRAIN_IMAGES], "val": images[-_NUM_VAL:]}
            _write_class(folder / "digits-0-4", name, splits)
        else:
            few = TRAIN_COUNTS[name]
            splits = {
                "train": images[:few],
                "val": images[few : few + _NUM_VAL],
                "test": images[few + _NUM_VAL :],
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
            # digits of 32 px are far from photos: statistics and backbone have to move
            "model": {"backbone": BACKBONE, "weights": weights, "batch_norm": "train"},
            # by itself a fine-tuned backbone learns at what suits the size of its weights
            "optim": {"lr": lr, "backbone_lr_scale": 1.0} if weights == "random" else {},
            "augment": {"name": str(data.parent / "augment.json")},
            "imbalance": {"strategy": "sqrt"},
            "trainer": {"epochs": epochs, "batch_size": batch_size, "accelerator": "cpu"},
            "output": str(output),
        }
    )
    return fit(config, reporter=reporter)
