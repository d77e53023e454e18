"""One trial of a study: a run of ``fit`` that reports each epoch and ends early if pruned."""

import math
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.commands.fit.fit import resume
from finetune.commands.fit.single_run import start_run
from finetune.commands.prepare_data import RunData
from finetune.commands.stored_run import read_stored_config
from finetune.commands.tune.trials.trial_facts import collect_facts, is_probe_kept, read_score
from finetune.commands.tune.trials.trial_queue import ClaimedTrial, TrialQueue
from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.config.section import describe_invalid_value
from finetune.errors import (
    ConfigError,
    FinetuneError,
    ModelError,
    TrainingError,
)
from finetune.models.pretrained.weights import extract_first_line
from finetune.system import run_folder
from finetune.system.hardware import explain_out_of_memory, is_out_of_memory, release_memory
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter

KEPT_FILES = ("config.yaml", "metrics.csv", "measured.json")
"""Files of a run folder that stay when its trial has lost."""

_TRIAL_ERRORS = (ConfigError, ModelError, TrainingError)
"""Errors that the values of a trial may cause, and others do not."""


class PrunedError(Exception):
    """End of a trial whose metric is worse than the median of the others."""


@dataclass(frozen=True, slots=True)
class TrialData:
    """Images and settings that all trials share.

    Attributes:
        config: Config of the default trial.
        data: Images, without the hold-out.
        monitor: Validation metric by which trials are judged.
        group: W&B group of the trials.
    """

    config: Config
    data: RunData
    monitor: str
    group: str


class TrialReporter(Reporter):
    """Reporter of a trial: shows its progress, keeps its messages, and prunes it.

    Args:
        claimed: The trial.
        queue: Trials of the study.
        monitor: Column of ``metrics.csv`` by which trials are judged.
        run: Run folder of the trial.
        title: Prefix of the progress.
        reporter: Receiver of the progress and of new warnings.
        shown: Warnings that earlier trials have shown; this one adds its own.
    """

    def __init__(
        self,
        claimed: ClaimedTrial,
        queue: TrialQueue,
        *,
        monitor: str,
        run: RunFolder,
        title: str,
        reporter: Reporter,
        shown: set[str],
    ) -> None:
        self.claimed = claimed
        self.queue = queue
        self.monitor = monitor
        self.run = run
        self.title = title
        self.reporter = reporter
        self.shown = shown
        self._num_epochs: int | None = None

    def warn(self, message: str) -> None:
        """Show a warning that no trial before has shown."""
        if message not in self.shown:
            self.shown.add(message)
            self.reporter.warn(message)

    def start(self, task: str, total: int) -> None:
        """Show a progress bar with the number of the trial."""
        self.reporter.start(f"{self.title}, {task}", total)

    def advance(self, steps: int = 1) -> None:
        """Advance the progress bar."""
        self.reporter.advance(steps)

    def finish(self) -> None:
        """Remove the progress bar."""
        self.reporter.finish()

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        """Report the metric of an epoch to the study.

        Raises:
            PrunedError: The metric is worse than the median of the completed trials.
        """
        epoch, value = int(row["epoch"]), row.get(self.monitor)
        if epoch < 1 or value is None:
            return
        if self._num_epochs is None:
            self._num_epochs = int(read_stored_config(self.run).trainer.epochs)
        tenths = find_completed_tenths(epoch, self._num_epochs)
        should_prune = self.queue.report(self.claimed, float(value), tenths=tenths)
        # after the last epoch it costs nothing more, and may be the best after all
        if should_prune and epoch < self._num_epochs:
            raise PrunedError


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """End of a trial.

    Attributes:
        value: Metric of the trial's model on the validation images; None unless it completed.
        is_pruned: Whether it was pruned.
        reason: Why it failed; empty if it did not.
        facts: What the study records of it: seconds, epochs, and metrics of the validation images.
    """

    value: float | None = None
    is_pruned: bool = False
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def run_trial(
    claimed: ClaimedTrial,
    queue: TrialQueue,
    shared: TrialData,
    run_dir: Path,
    *,
    title: str,
    reporter: Reporter,
    shown: set[str],
) -> TrialOutcome:
    """Train a trial, or continue it if its process was stopped, and return how it ended.

    Args:
        claimed: The trial.
        queue: Trials of the study.
        shared: Images and settings of the study.
        run_dir: Run folder of the trial.
        title: Prefix of the progress.
        reporter: Receiver of progress and warnings.
        shown: Warnings that have been shown.

    Raises:
        FinetuneError: An error that other values would not avoid, or any of the default trial.
        KeyboardInterrupt: Stop requested; the trial can be continued.
    """
    run = RunFolder(run_dir)
    trial_reporter = TrialReporter(
        claimed,
        queue,
        monitor=f"val/{shared.monitor}",
        run=run,
        title=title,
        reporter=reporter,
        shown=shown,
    )
    try:
        metrics = _fit(claimed, shared, run, trial_reporter)
    except PrunedError:
        return TrialOutcome(is_pruned=True, facts=collect_facts(claimed, run))
    except Exception as error:
        reason = _explain_failure(error)
        if reason is None or claimed.is_default:
            raise
        return TrialOutcome(reason=reason, facts=collect_facts(claimed, run))
    finally:
        reporter.finish()
        release_memory()
        with suppress(OSError):
            (run_dir.parent / "latest").unlink(missing_ok=True)
    value = read_score(run, shared.monitor)
    facts = {
        **collect_facts(claimed, run),
        "metrics": dict(metrics),
        "probe_kept": is_probe_kept(run),
    }
    if not math.isfinite(value):
        return TrialOutcome(reason=f"{shared.monitor} is not finite", facts=facts)
    return TrialOutcome(value, facts=facts)


def build_trial_config(claimed: ClaimedTrial, shared: TrialData, run_dir: Path) -> Config:
    """Return the config of a trial: that of the study with the values of the trial.

    Raises:
        ConfigError: The values cannot be combined.
    """
    values = {} if claimed.is_default else dict(claimed.values)
    tracking = shared.config.tracking
    changes = {
        **values,
        "output": str(run_dir),
        "report.enabled": "off",
        "tracking.group": tracking.group or shared.group,
        "tracking.name": f"{tracking.name or shared.group}-{run_dir.name}",
    }
    try:
        return replace_values(shared.config, changes)
    except ValidationError as error:
        first = error.errors()[0]
        section = ".".join(str(part) for part in first["loc"][:2])
        raise ConfigError(f"{section}: {describe_invalid_value([first])}") from error


def find_completed_tenths(epoch: int, num_epochs: int) -> list[int]:
    """Return the tenths of all epochs that end with an epoch, from 1 to 10.

    Args:
        epoch: Completed epoch, counted from 1.
        num_epochs: Number of epochs.
    """
    return list(range(10 * (epoch - 1) // num_epochs + 1, 10 * epoch // num_epochs + 1))


def remove_losing_files(run_dir: Path) -> None:
    """Remove all files of a trial but its config and its metrics."""
    if not run_dir.is_dir():
        return
    for entry in run_dir.iterdir():
        if entry.name in KEPT_FILES:
            continue
        with suppress(OSError):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _fit(
    claimed: ClaimedTrial, shared: TrialData, run: RunFolder, reporter: TrialReporter
) -> Mapping[str, Any]:
    """Train a trial to its end and return the metrics of its model on the validation images."""
    if run_folder.is_run(run.path):
        result = resume(run.path, reporter=reporter)
    else:
        config = build_trial_config(claimed, shared, run.path)
        result = start_run(config, reporter, None, time.monotonic(), data=shared.data)
    return result.metrics["val"]


def _explain_failure(error: Exception) -> str | None:
    """Return why a trial failed if its values may be the cause; None for other errors."""
    if isinstance(error, _TRIAL_ERRORS):
        return str(error)
    if is_out_of_memory(error):
        return explain_out_of_memory(error)
    if isinstance(error, FinetuneError | OSError):
        return None
    return f"{type(error).__name__}: {extract_first_line(error)}"
