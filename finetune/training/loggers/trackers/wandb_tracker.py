"""Weights & Biases run of a training run."""

import atexit
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.system.files import write_text
from finetune.training.loggers.summary_goals import get_goal
from finetune.training.loggers.tracked_records import (
    MAX_PICTURES,
    STEP_KEY,
    DatasetRecord,
    Interruption,
    RunResults,
)
from finetune.training.loggers.tracker import Row, to_epoch_metrics
from finetune.training.loggers.trackers.wandb_tables import (
    build_confusion_chart,
    build_reliability_chart,
    build_wandb_table,
    tabulate_classes,
)
from finetune.types import Evaluation

_ALIASES = ["best", "latest"]


class WandbTracker:
    """Tracker that writes to a W&B run, which a resumed run continues.

    W&B's own step of a row is the step of the optimizer, so that the parts of a resumed run join in
    order. Charts have it as their axis, too, as ``trainer/global_step``.

    Args:
        run: W&B run, as ``start_wandb_run`` returns it.
        state_path: File with the number of epochs that W&B is known to have, and the first step of
            its own that is free; written when the run last ended cleanly.
        registry: Collection of the registry to which the model is linked; None for none.
    """

    def __init__(self, run: Any, *, state_path: Path, registry: str | None = None) -> None:
        self._run = run
        self._state_path = state_path
        self._registry = registry
        self._num_logged, self._first_step = _read_state(state_path)
        self._defined: set[str] = set()
        run.define_metric(STEP_KEY)
        run.define_metric("*", step_metric=STEP_KEY, step_sync=True)

    @property
    def name(self) -> str:
        """Name for messages."""
        return "Weights & Biases"

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the config by dotted key, by which W&B filters, groups and sweeps."""
        self._run.config.update(dict(config), allow_val_change=True)

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Log the manifest as an input artifact; runs on the same images share its version."""
        import wandb

        artifact = wandb.Artifact(
            f"dataset-{dataset.digest[:12]}",
            type="dataset",
            metadata={"digest": dataset.digest, **dataset.facts},
        )
        artifact.add_file(str(dataset.manifest_path), name="manifest.csv")
        # use_artifact() does this, and waits for the server; offline it refuses
        self._run._log_artifact(
            artifact, aliases=["latest"], is_user_created=True, use_after_commit=True
        )

    def log_epoch(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log a row; each metric gets the axis and the summary of its kind when it first comes."""
        for name in metrics.keys() - self._defined:
            self._define(name)
        own_step = max(step, self._run.step, self._first_step)
        self._run.log({**metrics, STEP_KEY: step}, step=own_step, commit=True)

    def restore_epochs(self, rows: Sequence[Row]) -> None:
        """Log the epochs that W&B may have lost in a kill, since it writes asynchronously.

        Rows that W&B receives twice have the same step and the same values.
        """
        for row in rows:
            if row["epoch"] > self._num_logged:
                metrics, step = to_epoch_metrics(row)
                self.log_epoch(metrics, step=step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Log values to the summary."""
        self._run.summary.update(dict(values))

    def log_results(self, results: RunResults, *, step: int) -> None:
        """Log final metrics, tables, charts, pictures and the report, all as one row."""
        import wandb

        self.log_summary(results.summary)
        # in the history, too, which sweeps read
        logged: dict[str, Any] = dict(results.compute_final_metrics())
        for split, evaluation in results.evaluations.items():
            table = build_wandb_table(tabulate_classes(evaluation))
            if isinstance(evaluation, Evaluation):
                logged[f"per_class/{split}"] = table
                chart = build_confusion_chart(evaluation, results.classes, split=split)
                logged[f"confusion_matrix/{split}"] = chart
            else:
                logged[f"per_label/{split}"] = table
        for split, curve in results.reliability.items():
            logged[f"calibration/{split}"] = build_reliability_chart(curve, split=split)
        for name, pictures in results.pictures.items():
            shown = pictures[:MAX_PICTURES]
            images = _center_on_equal_canvas([one.image for one in shown])
            logged[name] = [
                wandb.Image(image, caption=one.caption)
                for image, one in zip(images, shown, strict=True)
            ]
        for name, tracked in results.tables.items():
            logged[f"{name}/table"] = build_wandb_table(tracked)
        if results.report_path is not None:
            logged["report"] = wandb.Html(results.report_path.read_text("utf-8"), inject=False)
        # the first step after that of the last epoch
        own_step = max(step, self._run.step, self._first_step)
        self._run.log({**logged, STEP_KEY: max(0, step - 1)}, step=own_step, commit=True)
        self._log_bundle(results)

    def interrupt(self, interruption: Interruption, rows: Sequence[Row]) -> None:
        """Finish this part of the run, and have W&B requeue a run of a sweep that was preempted.

        If W&B's service process is gone, as after a SIGTERM to all processes of a job, the resumed
        run logs the epochs again.
        """
        try:
            if interruption.is_preempted:
                self._run.mark_preempting()
            if not interruption.is_resumable and interruption.checkpoint_path is not None:
                self._log_checkpoint(interruption.checkpoint_path)
            self._summarize(rows)
            first_free = self._run.step
            self._run.finish(exit_code=interruption.exit_code)
        except Exception:  # an OSError, or an error of W&B's own if the service is gone meanwhile
            _silence_exit_errors()
            return
        if interruption.is_resumable:
            self._write_state(rows, first_free)

    def finish(self, rows: Sequence[Row]) -> None:
        """Finish the run."""
        self._summarize(rows)
        first_free = self._run.step
        self._run.finish()
        self._write_state(rows, first_free)

    def _define(self, name: str) -> None:
        self._defined.add(name)
        goal = get_goal(name)
        if goal != "last":
            self._run.define_metric(name, step_metric=STEP_KEY, step_sync=True, summary=goal)

    def _summarize(self, rows: Sequence[Row]) -> None:
        """Set the summaries over all parts of the run; W&B knows the rows of this part only."""
        for name in {name for row in rows for name in row}:
            goal = get_goal(name)
            values = [row[name] for row in rows if name in row and row[name] == row[name]]
            if goal != "last" and values:
                best = max(values) if goal == "max" else min(values)
                self._run.summary.update({name: {goal: best}})

    def _log_bundle(self, results: RunResults) -> None:
        """Log the bundle as an artifact, and link it to the registry if one is given."""
        import wandb

        metadata = dict(results.bundle.facts)
        artifact = wandb.Artifact(f"model-{self._run.id}", type="model", metadata=metadata)
        for file in sorted(results.bundle.path.iterdir()):  # add_dir() prints even in silent mode
            artifact.add_file(str(file), name=file.name)
        self._run.log_artifact(artifact, aliases=_ALIASES)
        if self._registry is not None:
            self._run.link_artifact(artifact, target_path=self._registry)

    def _log_checkpoint(self, path: Path) -> None:
        """Log the best checkpoint of a run that ended with an error."""
        import wandb

        artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
        artifact.add_file(str(path), name=path.name)
        self._run.log_artifact(artifact, aliases=["incomplete"])

    def _write_state(self, rows: Sequence[Row], first_free_step: int) -> None:
        num_epochs = int(rows[-1]["epoch"]) if rows else 0
        write_text(self._state_path, f"{num_epochs} {first_free_step}\n")


def _read_state(path: Path) -> tuple[int, int]:
    """Return the number of epochs that W&B has, and the first step of its own that is free."""
    numbers: list[int] = []
    with suppress(OSError, ValueError):
        numbers = [int(word) for word in path.read_text(encoding="utf-8").split()]
    num_epochs, first_step = [*numbers, 0, 0][:2]
    return num_epochs, first_step


def _center_on_equal_canvas(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Return images on grey canvases of one size, which W&B needs to show them side by side."""
    size = (
        max((one.width for one in images), default=0),
        max((one.height for one in images), default=0),
    )
    centered = []
    for image in images:
        canvas = Image.new("RGB", size, "grey")
        canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
        centered.append(canvas)
    return centered


def _silence_exit_errors() -> None:
    """Keep W&B from printing a traceback at the interpreter's exit, as its service is gone."""

    def ignore_connection_errors(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, OSError):
            sys.__unraisablehook__(unraisable)

    # registered after W&B's own callback, and therefore called before it
    atexit.register(setattr, sys, "unraisablehook", ignore_connection_errors)
