"""Training with given callbacks, and a reporter that records its calls."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback

from finetune.builders import Training, build_trainer_options
from finetune.training.trainer import create_trainer, fit
from finetune.types import Reporter


def train_with_callbacks(training: Training, folder: Path, *callbacks: Callback) -> None:
    """Train all epochs, with ``callbacks`` and those of every trainer."""
    trainer = create_trainer(
        folder, build_trainer_options(training.config), callbacks=callbacks, loggers=[]
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)


class CallRecorder(Reporter):
    """Reporter that records the names and arguments of its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def note(self, message: str) -> None:
        self.calls.append(("note", message))

    def start(self, task: str, total: int) -> None:
        self.calls.append(("start", (task, total)))

    def advance(self, steps: int = 1) -> None:
        self.calls.append(("advance", steps))

    def finish(self) -> None:
        self.calls.append(("finish", None))

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        self.calls.append(("epoch", row))
