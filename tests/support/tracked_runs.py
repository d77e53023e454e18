"""Readers of what TensorBoard and MLflow have of a run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Curve = list[tuple[int, float]]
"""Steps and values of a metric."""

NOT_IN_CSV = ("epoch", "step", "seconds")


@dataclass
class TrackedRun:
    """Content of a tracker.

    Attributes:
        curves: Curve of each metric.
        names: Names of pictures, texts and files.
        params: Settings.
        status: State of the run.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    params: dict[str, str] = field(default_factory=dict)
    status: str = ""


def read_event_files(folder: Path) -> TrackedRun:
    """Return what TensorBoard shows of a folder with event files."""
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    events = event_accumulator.EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0}
    )
    events.Reload()
    tags = events.Tags()
    curves = {
        name: [(one.step, one.value) for one in events.Scalars(name)] for name in tags["scalars"]
    }
    texts = {name.removesuffix("/text_summary") for name in tags["tensors"]}
    return TrackedRun(curves, {*tags["images"], *texts})


def read_mlflow_run(uri: str) -> TrackedRun:
    """Return the only run of an MLflow store."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    run_id = run.info.run_id
    curves = {
        name: [(one.step, one.value) for one in client.get_metric_history(run_id, name)]
        for name in run.data.metrics
    }
    files = set(_list_files(client, run_id, None))
    return TrackedRun(curves, files, run.data.params, run.info.status)


def get_csv_curves(rows: list[dict[str, str]]) -> dict[str, Curve]:
    """Return the curves of ``metrics.csv`` without the probe, with steps counted from 0."""
    epochs = [row for row in rows if int(row["epoch"]) > 0]
    names = [name for name in epochs[0] if name not in NOT_IN_CSV]
    curves = {
        name: [(int(row["step"]) - 1, float(row[name])) for row in epochs if row[name]]
        for name in names
    }
    return {name: curve for name, curve in curves.items() if curve}


def _list_files(client: Any, run_id: str, folder: str | None) -> list[str]:
    files: list[str] = []
    for one in client.list_artifacts(run_id, folder):
        files += _list_files(client, run_id, one.path) if one.is_dir else [one.path]
    return files
