"""Interface of experiment trackers."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from finetune.training.loggers.tracked_records import DatasetRecord, Interruption, RunResults

Row = Mapping[str, float]
"""Row of ``metrics.csv``: an epoch, counted from 1, or that of the probe, 0."""


class Tracker(Protocol):
    """Receiver of a run's config, metrics, pictures and files, on rank 0.

    Steps are those of the optimizer and epochs are counted from 0, as Lightning logs them.
    """

    @property
    def name(self) -> str:
        """Name for messages."""
        ...

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the config by dotted key; later calls replace values."""
        ...

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Log the manifest as an input of the run."""
        ...

    def log_epoch(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log the metrics of an epoch."""
        ...

    def restore_epochs(self, rows: Sequence[Row]) -> None:
        """Log the completed epochs of a resumed run that the tracker does not have."""
        ...

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Log values of the run as a whole."""
        ...

    def log_results(self, results: RunResults, *, step: int) -> None:
        """Log what is known once the best model is evaluated and its bundle is written."""
        ...

    def interrupt(self, interruption: Interruption, rows: Sequence[Row]) -> None:
        """End this part of the run, so that everything logged reaches its file or server."""
        ...

    def finish(self, rows: Sequence[Row]) -> None:
        """End the run."""
        ...


def to_epoch_metrics(row: Row) -> tuple[dict[str, float], int]:
    """Return the metrics and the step of a row as Lightning logs them: both counted from 0."""
    metrics = {name: value for name, value in row.items() if name not in ("step", "seconds")}
    return {**metrics, "epoch": row["epoch"] - 1}, max(0, int(row["step"]) - 1)
