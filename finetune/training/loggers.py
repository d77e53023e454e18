"""Where the numbers go: ``metrics.csv`` always, Weights & Biases on request."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger, WandbLogger

from finetune.errors import TrackingError
from finetune.storage import write_text
from finetune.types import Evaluation, Reporter

_FIRST_COLUMNS = ("epoch", "step", "seconds", "train/loss")


class MetricsCsv(Checkpoint):
    """One row an epoch in ``metrics.csv``; a resumed run replaces the rows that it repeats.

    A callback of the kind that Lightning calls last, and placed before the checkpoints: a logger
    would be called after them, and a kill in between would lose the row for good.

    Args:
        path: The file; rows that it holds are kept.
        reporter: Told of each row.
    """

    def __init__(self, path: Path, *, reporter: Reporter) -> None:
        self.path = path
        self.reporter = reporter
        self._rows: dict[int, dict[str, Any]] = _read_rows(path)
        self._started = False
        self._clock = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the seconds of the first epoch from here."""
        self._clock = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row, on rank 0."""
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.record(metrics, epoch=trainer.current_epoch, step=trainer.global_step)

    def record(self, metrics: Mapping[str, float], *, epoch: int, step: int) -> None:
        """Write a row.

        Args:
            metrics: Name to value.
            epoch: Counted from 0; the file counts from 1.
            step: Optimizer steps that are done.
        """
        if not self._started:
            self._started = True
            self._rows = {number: row for number, row in self._rows.items() if number <= epoch}
        now = time.monotonic()
        seconds, self._clock = round(now - self._clock, 3), now
        row = {"epoch": epoch + 1, "step": step, "seconds": seconds, **metrics}
        self._rows[epoch + 1] = row
        write_text(self.path, _as_csv(list(self._rows.values())))
        self.reporter.epoch(row)


def _read_rows(path: Path) -> dict[int, dict[str, Any]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        return {
            int(row["epoch"]): {name: value for name, value in row.items() if value != ""}
            for row in csv.DictReader(stream)
        }


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = {name: None for row in rows for name in row}
    columns = [name for name in _FIRST_COLUMNS if name in names]
    columns += [name for name in names if name not in _FIRST_COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def create_wandb_logger(
    folder: Path,
    *,
    run_id: str,
    mode: str,
    project: str,
    entity: str | None,
    name: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
) -> WandbLogger:
    """Return a logger whose W&B run goes on when the same id comes again.

    Args:
        folder: Where W&B writes its files.
        run_id: Of the W&B run; kept in the run folder.
        mode: "offline" or "online".
        project: W&B project.
        entity: W&B user or team.
        name: Shown for the run.
        tags: Shown for the run.
        config: The resolved config.

    Raises:
        TrackingError: W&B refuses, or is not reached.
    """
    import wandb

    try:
        # the logger would start the run itself, but with options that warn on the console
        run = wandb.init(
            dir=folder,
            id=run_id,
            resume="allow",
            mode="offline" if mode == "offline" else "online",
            project=project,
            entity=entity,
            name=name,
            tags=list(tags),
            settings=wandb.Settings(silent=True, console="off"),
        )
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TrackingError(
            f"Weights & Biases does not start: {reason}. Log in with `wandb login`, or use --wandb "
            f"offline; the run folder {folder} goes on with --resume."
        ) from error
    run.config.update(dict(config), allow_val_change=True)  # type: ignore[no-untyped-call]
    return WandbLogger(experiment=run, log_model=False)


@dataclass(frozen=True, slots=True)
class Tracking:
    """The trackers of one run.

    Attributes:
        csv: Always there.
        wandb: On request, on rank 0.
    """

    csv: MetricsCsv
    wandb: WandbLogger | None = None

    @property
    def loggers(self) -> list[Logger]:
        """Return what the trainer logs to; ``csv`` is a callback."""
        return [] if self.wandb is None else [self.wandb]

    def break_off(self, *, preempted: bool) -> None:
        """End this part of the W&B run; everything that was logged gets to its file or server.

        Args:
            preempted: Another part is to follow.
        """
        if self.wandb is None:
            return
        run = self.wandb.experiment
        if preempted:
            run.mark_preempting()
        run.finish(exit_code=1)

    def finish(
        self, evaluations: Mapping[str, Evaluation], *, classes: Sequence[str], bundle: Path
    ) -> None:
        """Log the final metrics, confusion matrices and the bundle, and end the W&B run.

        Args:
            evaluations: Split to the best model's evaluation.
            classes: Class names in index order.
            bundle: The bundle folder, logged as a model artifact.
        """
        if self.wandb is None:
            return
        import wandb

        run = self.wandb.experiment
        for split, evaluation in evaluations.items():
            _log_results(run, evaluation, split=split, classes=classes)
        artifact = wandb.Artifact(f"model-{run.id}", type="model")
        for file in sorted(bundle.iterdir()):  # add_dir() writes to the console, silent or not
            artifact.add_file(str(file), name=file.name)
        run.log_artifact(artifact, aliases=["best", "latest"])
        run.finish()


def _log_results(run: Any, evaluation: Evaluation, *, split: str, classes: Sequence[str]) -> None:
    import wandb

    run.summary.update({f"final/{split}/{k}": v for k, v in evaluation.metrics.items()})
    table = wandb.Table(
        columns=["actual", "predicted", "images"],
        data=[
            [classes[true], classes[predicted], count]
            for true, row in enumerate(evaluation.confusion)
            for predicted, count in enumerate(row)
        ],
    )
    chart = wandb.plot_table(
        "wandb/confusion_matrix/v1",
        table,
        {"Actual": "actual", "Predicted": "predicted", "nPredictions": "images"},
        {"title": f"Confusion matrix ({split})"},
    )
    run.log({f"confusion_matrix/{split}": chart})
