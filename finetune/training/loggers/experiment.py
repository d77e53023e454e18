"""Where the numbers go: ``metrics.csv`` always, Weights & Biases on request."""

import atexit
import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger, WandbLogger

from finetune.distributed import signals
from finetune.errors import TrackingError
from finetune.system.files import write_text
from finetune.training.loggers.wandb_tables import log_results
from finetune.types import Evaluation, Reporter

_LEADING_COLUMNS = ("epoch", "step", "seconds", "train/loss")


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
        self._has_started = False
        self._last_row_time = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the seconds of the first epoch from here."""
        self._last_row_time = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row, on rank 0."""
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.record(metrics, epoch=trainer.current_epoch, step=trainer.global_step)

    def drop_rows_after(self, epoch: int) -> None:
        """Leave out what a killed run wrote of an epoch that it will repeat."""
        self._rows = {number: row for number, row in self._rows.items() if number <= epoch}

    @property
    def num_epochs(self) -> int:
        """Return the epoch of the last row."""
        return max(self._rows, default=0)

    def get_rows(self, *, after: int, up_to: int) -> list[dict[str, float]]:
        """Return the rows of some epochs, counted from 1."""
        found = (self._rows[epoch] for epoch in sorted(self._rows) if after < epoch <= up_to)
        return [{name: float(value) for name, value in row.items()} for row in found]

    def record(self, metrics: Mapping[str, float], *, epoch: int, step: int) -> None:
        """Write a row.

        Args:
            metrics: Name to value.
            epoch: Counted from 0; the file counts from 1.
            step: Optimizer steps that are done.
        """
        if not self._has_started:
            self._has_started = True
            self._rows = {number: row for number, row in self._rows.items() if number <= epoch}
        now = time.monotonic()
        seconds, self._last_row_time = round(now - self._last_row_time, 3), now
        row = {"epoch": epoch + 1, "step": step, "seconds": seconds, **metrics}
        self._rows[epoch + 1] = row
        write_text(self.path, _format_csv(list(self._rows.values())))
        self.reporter.show_epoch(row)


def _read_rows(path: Path) -> dict[int, dict[str, Any]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        return {
            int(row["epoch"]): {name: value for name, value in row.items() if value != ""}
            for row in csv.DictReader(stream)
        }


def _format_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = {name: None for row in rows for name in row}
    columns = [name for name in _LEADING_COLUMNS if name in names]
    columns += [name for name in names if name not in _LEADING_COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def create_wandb_logger(
    run_dir: Path,
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
        run_dir: Where W&B writes its files.
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
        with signals.block():  # its own process must outlive what stops the run
            run = wandb.init(
                dir=run_dir,
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
            f"offline; the run folder {run_dir} goes on with --resume."
        ) from error
    run.config.update(dict(config), allow_val_change=True)  # type: ignore[no-untyped-call]
    return WandbLogger(experiment=run, log_model=False)


@dataclass(frozen=True, slots=True)
class RunTracker:
    """The trackers of one run.

    Attributes:
        csv: Always there.
        wandb: On request, on rank 0.
        wandb_epochs_path: Says how many epochs W&B is known to have; needed with ``wandb``.
    """

    csv: MetricsCsv
    wandb: WandbLogger | None = None
    wandb_epochs_path: Path | None = None

    @property
    def loggers(self) -> list[Logger]:
        """Return what the trainer logs to; ``csv`` is a callback."""
        return [] if self.wandb is None else [self.wandb]

    def relog_epochs(self, *, num_epochs: int) -> None:
        """Log what may have been lost when the run was killed: W&B writes late and elsewhere.

        What comes twice has the same step and the same values.

        Args:
            num_epochs: Those that a resumed run has behind it.
        """
        if self.wandb is None or self.wandb_epochs_path is None:
            return
        known = (
            int(self.wandb_epochs_path.read_text(encoding="utf-8"))
            if self.wandb_epochs_path.is_file()
            else 0
        )
        for row in self.csv.get_rows(after=known, up_to=num_epochs):
            values = {
                name: value for name, value in row.items() if name not in _LEADING_COLUMNS[1:3]
            }
            # counted as Lightning counts them
            self.wandb.log_metrics({**values, "epoch": row["epoch"] - 1}, step=int(row["step"]) - 1)

    def interrupt(self, *, is_resumable: bool) -> None:
        """End this part of the W&B run; everything that was logged gets to its file or server.

        Where W&B's own process is gone already, as after a SIGTERM to all processes of a job, the
        next start logs again.

        Args:
            is_resumable: No epoch was being finished, and the run is to go on.
        """
        if self.wandb is None or self.wandb_epochs_path is None:
            return
        run = self.wandb.experiment
        try:
            if is_resumable:
                run.mark_preempting()
            run.finish(exit_code=1)
        except OSError:
            _suppress_exit_tracebacks()
        else:
            if is_resumable:
                write_text(self.wandb_epochs_path, f"{self.csv.num_epochs}\n")

    def finish(
        self, evaluations: Mapping[str, Evaluation], *, classes: Sequence[str], bundle_dir: Path
    ) -> None:
        """Log the final metrics, confusion matrices and the bundle, and end the W&B run.

        Args:
            evaluations: Split to the best model's evaluation.
            classes: Class names in index order.
            bundle_dir: The bundle folder, logged as a model artifact.
        """
        if self.wandb is None:
            return
        import wandb

        run = self.wandb.experiment
        for row in self.csv.get_rows(after=-1, up_to=0):  # the probe
            of_val = {name: value for name, value in row.items() if name.startswith("val/")}
            run.summary.update({f"probe/{name}": value for name, value in of_val.items()})
        for split, evaluation in evaluations.items():
            log_results(run, evaluation, split=split, classes=classes)
        artifact = wandb.Artifact(f"model-{run.id}", type="model")
        for file in sorted(bundle_dir.iterdir()):  # add_dir() writes to the console, silent or not
            artifact.add_file(str(file), name=file.name)
        run.log_artifact(artifact, aliases=["best", "latest"])
        run.finish()
        if self.wandb_epochs_path is not None:
            write_text(self.wandb_epochs_path, f"{self.csv.num_epochs}\n")


def _suppress_exit_tracebacks() -> None:
    """Keep W&B from showing a traceback when Python exits, since its process is gone."""

    def ignore_broken_connections(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, OSError):
            sys.__unraisablehook__(unraisable)

    # later than W&B's own, and so called before it
    atexit.register(setattr, sys, "unraisablehook", ignore_broken_connections)
