"""Weights & Biases run: resumable logger, final metrics, class tables and the model artifact."""

import atexit
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

from finetune.distributed import signals
from finetune.errors import TrackingError
from finetune.evaluation.multi_label.label_metrics import MultiLabelEvaluation
from finetune.system.files import write_text
from finetune.training.callbacks.early_stopping import EarlyStop
from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.loggers.wandb_labels import log_label_evaluation
from finetune.types import Evaluation

_CLASS_TABLE_COLUMNS: list[str | int] = [
    "class", "train images", "images", "predicted", "precision", "recall", "recall low",
    "recall high", "F1",
]  # fmt: skip


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
    group: str | None = None,
) -> WandbLogger:
    """Create a logger; the same id continues the same W&B run.

    Args:
        run_dir: Folder in which W&B writes its files.
        run_id: Id of the W&B run; kept in the run folder.
        mode: "offline" or "online".
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        name: Displayed name of the run.
        tags: Tags of the run.
        config: Resolved config.
        group: Group of runs that W&B shows together; None for none.

    Raises:
        TrackingError: W&B refuses to start, or its server cannot be reached.
    """
    import wandb

    try:
        # the logger would start the run itself, but with options that print warnings
        with signals.block():  # W&B's service process must outlive the signal that stops the run
            run = wandb.init(
                dir=run_dir,
                id=run_id,
                resume="allow",
                mode="offline" if mode == "offline" else "online",
                project=project,
                entity=entity,
                name=name,
                group=group,
                tags=list(tags),
                settings=wandb.Settings(silent=True, console="off"),
            )
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TrackingError(
            f"Weights & Biases failed to start: {reason}. Log in with `wandb login`, or use "
            f"--wandb offline; resume the run with --resume {run_dir}."
        ) from error
    run.config.update(dict(config), allow_val_change=True)  # type: ignore[no-untyped-call]
    return WandbLogger(experiment=run, log_model=False)


@dataclass(frozen=True, slots=True)
class RunTracker:
    """Metrics file and optional W&B run of one training run.

    Attributes:
        csv: Writer of ``metrics.csv``.
        wandb: W&B logger on rank 0, if requested.
        wandb_epochs_path: File with the number of epochs that W&B is known to have; required with
            ``wandb``.
    """

    csv: MetricsCsv
    wandb: WandbLogger | None = None
    wandb_epochs_path: Path | None = None

    @property
    def loggers(self) -> list[Logger]:
        """The loggers for the trainer; ``csv`` is a callback."""
        return [] if self.wandb is None else [self.wandb]

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Replace the config of the W&B run, once settings have been measured."""
        if self.wandb is not None:
            self.wandb.experiment.config.update(dict(config), allow_val_change=True)

    def update_summary(self, values: Mapping[str, float]) -> None:
        """Add values to the summary of the W&B run."""
        if self.wandb is not None:
            self.wandb.experiment.summary.update(dict(values))

    def relog_epochs(self, *, num_epochs: int) -> None:
        """Log epochs again that W&B may have lost in a kill, since it writes asynchronously.

        Rows that W&B receives twice have the same step and the same values.

        Args:
            num_epochs: Number of epochs that the resumed run has completed.
        """
        if self.wandb is None or self.wandb_epochs_path is None:
            return
        num_logged = (
            int(self.wandb_epochs_path.read_text(encoding="utf-8"))
            if self.wandb_epochs_path.is_file()
            else 0
        )
        for row in self.csv.get_rows(after=num_logged, up_to=num_epochs):
            values = {k: value for k, value in row.items() if k not in ("step", "seconds")}
            # epochs and steps from 0, as Lightning logs them
            self.wandb.log_metrics({**values, "epoch": row["epoch"] - 1}, step=int(row["step"]) - 1)

    def interrupt(self, *, is_resumable: bool) -> None:
        """Finish this part of the W&B run, so that everything logged reaches its file or server.

        If W&B's service process is gone, as after a SIGTERM to all processes of a job, the resumed
        run logs the epochs again.

        Args:
            is_resumable: Whether no epoch was being finished and the run will be resumed.
        """
        if self.wandb is None or self.wandb_epochs_path is None:
            return
        run = self.wandb.experiment
        try:
            if is_resumable:
                run.mark_preempting()
            run.finish(exit_code=1)
        except Exception:  # an OSError, or an error of W&B's own if the service is gone meanwhile
            _silence_exit_errors()
            return
        if is_resumable:
            write_text(self.wandb_epochs_path, f"{self.csv.num_epochs}\n")

    def finish(
        self,
        evaluations: Mapping[str, Evaluation | MultiLabelEvaluation],
        *,
        classes: Sequence[str],
        bundle_dir: Path,
        early_stop: EarlyStop | None = None,
    ) -> None:
        """Log final metrics, confusion matrices and the bundle, and finish the W&B run.

        Args:
            evaluations: Evaluation of the best model by split.
            classes: Class names in index order.
            bundle_dir: Bundle folder, logged as a model artifact.
            early_stop: When and why training stopped before its last epoch; None if it did not.
        """
        if self.wandb is None:
            return
        import wandb

        run = self.wandb.experiment
        for row in self.csv.get_rows(after=-1, up_to=0):  # the probe
            metrics = {name: value for name, value in row.items() if name.startswith("val/")}
            run.summary.update({f"probe/{name}": value for name, value in metrics.items()})
        if early_stop is not None:
            facts = early_stop.to_json().items()
            run.summary.update({f"early_stop/{name}": value for name, value in facts})
        for split, evaluation in evaluations.items():
            _log_evaluation(run, evaluation, split=split, classes=classes)
        artifact = wandb.Artifact(f"model-{run.id}", type="model")
        for file in sorted(bundle_dir.iterdir()):  # add_dir() prints even in silent mode
            artifact.add_file(str(file), name=file.name)
        run.log_artifact(artifact, aliases=["best", "latest"])
        run.finish()
        if self.wandb_epochs_path is not None:
            write_text(self.wandb_epochs_path, f"{self.csv.num_epochs}\n")


def _silence_exit_errors() -> None:
    """Keep W&B from printing a traceback at the interpreter's exit, as its service is gone."""

    def ignore_connection_errors(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, OSError):
            sys.__unraisablehook__(unraisable)

    # registered after W&B's own callback, and therefore called before it
    atexit.register(setattr, sys, "unraisablehook", ignore_connection_errors)


def _log_evaluation(
    run: Any,
    evaluation: Evaluation | MultiLabelEvaluation,
    *,
    split: str,
    classes: Sequence[str],
) -> None:
    """Log the final metrics of a split, its table of classes and its confusion matrix.

    Args:
        run: W&B run.
        evaluation: Evaluation of the best model.
        split: "val" or "test".
        classes: Class names in index order.
    """
    import wandb

    if isinstance(evaluation, MultiLabelEvaluation):
        log_label_evaluation(run, evaluation, split=split)
        return
    low, high = evaluation.accuracy_interval
    metrics = {**evaluation.metrics, "accuracy_low": low, "accuracy_high": high}
    run.summary.update({f"final/{split}/{name}": value for name, value in metrics.items()})
    run.log({f"per_class/{split}": _build_class_table(evaluation)})
    table = wandb.Table(
        columns=["actual", "predicted", "images"],
        data=[
            [classes[actual], classes[predicted], count]
            for actual, row in enumerate(evaluation.confusion_matrix)
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


def _build_class_table(evaluation: Evaluation) -> Any:
    """Build the W&B table with one row per class; cells of undefined values are empty."""
    import wandb

    return wandb.Table(
        columns=_CLASS_TABLE_COLUMNS,
        data=[
            [
                stats.name,
                stats.train_images,
                stats.support,
                stats.num_predicted,
                stats.precision,
                stats.recall,
                *(stats.recall_interval or (None, None)),
                stats.f1,
            ]
            for stats in evaluation.per_class
        ],
    )
