"""MLflow run of a training run."""

import csv
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger

from finetune.errors import TrackingError
from finetune.system.run_paths import RunFolder
from finetune.training.loggers.tracked_records import (
    MAX_PICTURES,
    DatasetRecord,
    Interruption,
    RunResults,
    TrackedTable,
)
from finetune.training.loggers.tracker import Row, to_epoch_metrics
from finetune.training.loggers.trackers.figures import draw_charts
from finetune.training.loggers.trackers.wandb_tables import tabulate_classes

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # it prints each table of a new store
    # a server that is gone would otherwise hold up the other processes for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Defaults of environment variables that MLflow reads."""

_SQLITE = "sqlite:///"
_MAX_TAG_LENGTH = 5000
_MAX_PARAM_LENGTH = 250  # of Lightning's logger


class MLflowTracker:
    """Tracker that writes to an MLflow run, which a resumed run continues.

    Args:
        logger: Lightning's logger, as ``start_mlflow_run`` returns it.
    """

    def __init__(self, logger: MLFlowLogger) -> None:
        self._logger = logger
        self._client = logger.experiment
        self._run_id = str(logger.run_id)
        self._config: dict[str, str] = {}

    @property
    def name(self) -> str:
        """Name for messages."""
        return "MLflow"

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the config as parameters, which cannot change; a changed value becomes a tag.

        Settings may be measured before the first epoch: the parameters are logged with its row.
        """
        texts = {key: _format_value(value)[:_MAX_PARAM_LENGTH] for key, value in config.items()}
        self._config.update(texts)

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Log the manifest as an artifact and the digest of the images as a tag."""
        self._client.set_tag(self._run_id, "dataset.digest", dataset.digest)
        self._client.log_artifact(self._run_id, str(dataset.manifest_path), "dataset")
        self._log_text(json.dumps(dict(dataset.facts), ensure_ascii=False), "dataset/facts.json")

    def log_epoch(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log the metrics of an epoch."""
        self._log_params()
        self._logger.log_metrics(dict(metrics), step)

    def restore_epochs(self, rows: Sequence[Row]) -> None:
        """Log the completed epochs that the store does not have."""
        known = {
            metric.step for metric in self._client.get_metric_history(self._run_id, "train/loss")
        }
        for row in rows:
            metrics, step = to_epoch_metrics(row)
            if step not in known:
                self.log_epoch(metrics, step=step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Log numbers as metrics and texts as tags."""
        for name, value in values.items():
            if isinstance(value, str):
                self._client.set_tag(self._run_id, name, value[:_MAX_TAG_LENGTH])
            elif value is not None:
                self._client.log_metric(self._run_id, name, float(value))

    def log_results(self, results: RunResults, *, step: int) -> None:
        """Log final metrics, tables, charts, pictures, the bundle and the report."""
        self._log_params()
        self.log_summary({**results.summary, **results.compute_final_metrics()})
        for split, evaluation in results.evaluations.items():
            kind = "per_class" if hasattr(evaluation, "per_class") else "per_label"
            self._log_text(_format_csv(tabulate_classes(evaluation)), f"{kind}/{split}.csv")
        for name, table in results.tables.items():
            self._log_text(_format_csv(table), f"{name}/table.csv")
        for name, figure in draw_charts(results):
            self._client.log_figure(self._run_id, figure, f"{name}.png")
        for name, pictures in results.pictures.items():
            for number, one in enumerate(pictures[:MAX_PICTURES], 1):
                self._client.log_image(self._run_id, one.image, f"{name}/{number:02}.png")
        self._client.log_artifacts(self._run_id, str(results.bundle.path), "model")
        self._log_text(json.dumps(dict(results.bundle.facts), indent=2), "model_facts.json")
        if results.report_path is not None:
            self._client.log_artifact(self._run_id, str(results.report_path))

    def interrupt(self, interruption: Interruption, rows: Sequence[Row]) -> None:
        """End the run as killed if it can be resumed, else as failed, with its best checkpoint."""
        if not interruption.is_resumable and interruption.checkpoint_path is not None:
            path = str(interruption.checkpoint_path)
            self._client.log_artifact(self._run_id, path, "incomplete")
        status = "KILLED" if interruption.is_resumable else "FAILED"
        self._client.set_terminated(self._run_id, status)

    def finish(self, rows: Sequence[Row]) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id, "FINISHED")

    def _log_params(self) -> None:
        """Log the settings that the store does not have."""
        if not self._config:
            return
        known = self._client.get_run(self._run_id).data.params
        new = {key: value for key, value in self._config.items() if key not in known}
        self._logger.log_hyperparams(new)
        for key, value in self._config.items():
            if key in known and known[key] != value:
                self._client.set_tag(self._run_id, f"changed.{key}", value)
        self._config = {}

    def _log_text(self, text: str, path: str) -> None:
        self._client.log_text(self._run_id, text, path)


def start_mlflow_run(
    uri: str,
    *,
    run_dir: Path,
    experiment: str,
    run_id: str | None,
    name: str,
    tags: Sequence[str] = (),
    group: str | None = None,
) -> MLFlowLogger:
    """Start an MLflow run, or continue the one with the given id.

    Args:
        uri: Tracking URI.
        run_dir: Run folder, for messages.
        experiment: Name of the experiment, which is created if there is none.
        run_id: Id of the run; None for a new one.
        name: Name of the run.
        tags: Tags of the run.
        group: Group of runs that belong together; None for none.

    Raises:
        TrackingError: The store cannot be opened, or does not have the run.
    """
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        logger = MLFlowLogger(
            experiment_name=experiment,
            run_name=name,
            tracking_uri=uri,
            tags={**dict.fromkeys(tags, "true"), **({"group": group} if group else {})},
            run_id=run_id,
        )
        client = logger._mlflow_client  # the property would start the run
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")
        elif client.get_experiment_by_name(experiment) is None:
            client.create_experiment(experiment, artifact_location=_choose_artifact_folder(uri))
        assert logger.run_id is not None, "starts the run"
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TrackingError(
            f"MLflow failed to start with tracking.mlflow={uri}: {reason}. Check the URI, or leave "
            f"tracking.mlflow out; resume the run: {RunFolder(run_dir).resume_command}"
        ) from error
    return logger


def _choose_artifact_folder(uri: str) -> str | None:
    """Return the folder of artifacts beside an SQLite store; None for the default of a server."""
    if not uri.startswith(_SQLITE):
        return None
    return (Path(uri.removeprefix(_SQLITE)).absolute().parent / "mlruns").as_uri()


def _format_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _format_csv(table: TrackedTable) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue()
