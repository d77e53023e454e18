"""Demonstration of fine-tuning on the handwritten digits that ship with scikit-learn.

A small network is trained on the digits 0 to 4. Its backbone is then fine-tuned on the digits 5 to
9, with few and imbalanced training images: frozen with a new head, then whole. Both are compared
with the same network trained from scratch. All runs use ``fit`` on a folder.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune.commands.demo.digits import IMAGE_SIZE, TRAIN_COUNTS, write_digits
from finetune.commands.demo.prediction_sheet import DigitExample, draw_examples, predict_examples
from finetune.commands.fit.fit import fit
from finetune.commands.fit.single_run import FitResult
from finetune.config.load import build_config
from finetune.data.transforms.presets import build_digits_pipeline, save_pipeline
from finetune.system import run_folder
from finetune.system.files import write_folder_atomically
from finetune.types import Reporter
from finetune.units import format_count

BACKBONE = "resnet10t"

METHODS: Mapping[str, str] = {
    "from_scratch": "from scratch",
    "frozen": "frozen features",
    "finetuned": "fine-tuned",
}
"""Key of each run on the digits 5 to 9 to its name."""

_PRETRAIN_EPOCHS = 5
_FIT_OPTIONS: Mapping[str, Any] = {"epochs": 10, "batch_size": 16, "lr": 3e-3}


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Results of the runs on the digits 5 to 9.

    Attributes:
        folder: Folder of the data and the runs.
        runs: Result of each run by its key in ``METHODS``.
        examples: Some test images with the prediction of each run.
        picture: PNG of the examples.
        seconds: Total duration.
    """

    folder: Path
    runs: Mapping[str, FitResult]
    examples: Sequence[DigitExample]
    picture: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        metrics = {name: dict(run.metrics["test"]) for name, run in self.runs.items()}
        return {
            "folder": str(self.folder),
            "run_dir": str(self.runs["finetuned"].run_dir),
            "seconds": round(self.seconds, 3),
            "accuracy": {name: values["accuracy"] for name, values in metrics.items()},
            "metrics": metrics,
            "examples": [asdict(example) for example in self.examples],
            "picture": str(self.picture),
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

    reporter.note("[1/4] Training a small network on the digits 0 to 4.")
    source = _fit(source_data, folder / "pretrain", reporter, epochs=_PRETRAIN_EPOCHS)
    weights = str(source.run_dir / "bundle")
    num_images = format_count(sum(TRAIN_COUNTS.values()), "image")
    reporter.note(f"\n[2/4] Training a network on {num_images} of the digits 5 to 9, from scratch.")
    scratch = _fit(target_data, folder / "scratch", reporter, **_FIT_OPTIONS)
    reporter.note(
        f"\n[3/4] Fitting a new head to the frozen network of step 1 on the same {num_images}."
    )
    frozen = _fit(target_data, folder / "frozen", reporter, weights=weights, epochs=None)
    reporter.note("\n[4/4] Fine-tuning the network of step 1 on them.")
    finetuned = _fit(target_data, folder / "finetune", reporter, weights=weights, **_FIT_OPTIONS)
    runs = {"from_scratch": scratch, "frozen": frozen, "finetuned": finetuned}
    examples = predict_examples(
        {name: run.run_dir for name, run in runs.items()}, target_data / "test"
    )
    picture = folder / "digits.png"
    draw_examples(examples, METHODS, target_data / "test", picture)
    return DemoResult(folder, runs, examples, picture, time.monotonic() - start)


def _fit(
    data: Path,
    output: Path,
    reporter: Reporter,
    *,
    epochs: int | None,
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
            "unfreeze": {"name": "linear_probe"} if epochs is None else {},
            "trainer": {"accelerator": "cpu"}
            | ({} if epochs is None else {"epochs": epochs, "batch_size": batch_size}),
            "output": str(output),
        }
    )
    return fit(config, reporter=reporter)
