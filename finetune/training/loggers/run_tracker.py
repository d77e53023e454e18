"""Trackers of a run: ``metrics.csv`` and any number of experiment trackers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytorch_lightning.loggers import Logger

from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.loggers.tracked_records import DatasetRecord, Interruption, RunResults
from finetune.training.loggers.tracker import Tracker, to_epoch_metrics
from finetune.types import Reporter

_LAST_METRIC = "train/loss"
"""Metric of the second of the two calls in which Lightning logs an epoch."""


@dataclass(frozen=True, slots=True)
class RunTracker:
    """Metrics file and experiment trackers of one training run.

    A tracker that fails during the run is reported once and left out from then on; a resumed run
    logs again what it misses.

    Attributes:
        csv: Writer of ``metrics.csv``.
        trackers: Experiment trackers, on rank 0.
        reporter: Receiver of warnings on trackers that fail.
    """

    csv: MetricsCsv
    trackers: Sequence[Tracker] = ()
    reporter: Reporter = field(default_factory=Reporter)
    _failed: set[str] = field(default_factory=set)

    @property
    def loggers(self) -> list[Logger]:
        """The loggers for the trainer; ``csv`` is a callback."""
        return [EpochLogger(self.log_epoch)] if self.trackers else []

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the config by dotted key, or replace it once settings have been measured."""
        self._call_all(lambda tracker: tracker.log_config(config))

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Log the images of the run as its input."""
        self._call_all(lambda tracker: tracker.log_dataset(dataset))

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Log values of the run as a whole."""
        self._call_all(lambda tracker: tracker.log_summary(values))

    def log_epoch(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log the metrics of an epoch."""
        self._call_all(lambda tracker: tracker.log_epoch(metrics, step=step))

    def log_probe(self) -> None:
        """Log the row of the linear probe: as baseline, or as the only epoch of a run."""
        for row in self.csv.get_rows(after=-1, up_to=0):
            metrics = {name: value for name, value in row.items() if "/" in name}
            self.log_summary({f"probe/{name}": value for name, value in metrics.items()})

    def restore_epochs(self, *, num_epochs: int) -> None:
        """Log the completed epochs of a resumed run that a tracker has lost in a kill."""
        rows = self.csv.get_rows(after=0, up_to=num_epochs)
        if rows:
            self._call_all(lambda tracker: tracker.restore_epochs(rows))

    def interrupt(self, interruption: Interruption) -> None:
        """End this part of the run in all trackers."""
        self.log_probe()
        rows = self.csv.get_rows(after=0, up_to=self.csv.num_epochs)
        self._call_all(lambda tracker: tracker.interrupt(interruption, rows), is_last=True)

    def finish(self, results: RunResults) -> None:
        """Log the results and end the run in all trackers."""
        rows = self.csv.get_rows(after=0, up_to=self.csv.num_epochs)
        step = int(rows[-1]["step"]) if rows else 0
        self.log_probe()
        if len(rows) == 1 and rows[0]["step"] == 0:  # of a run that ends with its probe
            metrics, first_step = to_epoch_metrics(rows[0])
            self.log_epoch(metrics, step=first_step)
        self._call_all(lambda tracker: tracker.log_results(results, step=step))
        self._call_all(lambda tracker: tracker.finish(rows), is_last=True)

    def _call_all(self, call: Callable[[Tracker], None], *, is_last: bool = False) -> None:
        """Call every tracker that has not failed, or, at the end, those that have failed, too.

        An error of a tracker never ends the training.
        """
        for tracker in self.trackers:
            has_failed = tracker.name in self._failed
            if has_failed and not is_last:
                continue
            try:
                call(tracker)
            except Exception as error:
                if has_failed:
                    continue
                self._failed.add(tracker.name)
                reason = str(error).partition("\n")[0].rstrip(".") or repr(error)
                self.reporter.warn(
                    f"{tracker.name} failed and is left out from now on: {reason}. The run itself "
                    f"continues; a resumed run logs its epochs again."
                )


class EpochLogger(Logger):
    """Logger of the trainer that joins the metrics of an epoch, which come in two calls.

    Args:
        log: Receiver of the metrics of an epoch and of its step.
    """

    def __init__(self, log: Callable[..., None]) -> None:
        super().__init__()
        self._log = log
        self._metrics: dict[str, float] = {}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "epochs"

    @property
    def version(self) -> str:
        """Version of the logger, which has none."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Ignore the arguments of the module; trackers have the config."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics once the last ones of the epoch are there."""
        self._metrics.update(metrics)
        if _LAST_METRIC in metrics:
            values, self._metrics = self._metrics, {}
            self._log(values, step=step or 0)
