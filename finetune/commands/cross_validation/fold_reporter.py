"""Reporter of one fold: warnings that all folds have in common are shown once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.commands.fit.single_run import FitResult
from finetune.evaluation.multi_label.label_metrics import MEAN_AVERAGE_PRECISION
from finetune.report.number_formats import format_metric_in_sentence
from finetune.types import Reporter
from finetune.units import format_duration, format_percent

_SCORES = ("accuracy", "macro_f1")
_LABEL_SCORES = (MEAN_AVERAGE_PRECISION, "micro_average_precision")
"""Metrics of a fold in its line."""


class FoldReporter(Reporter):
    """Reporter that names the fold in progress, and repeats no warning that was shown before.

    Notes are results of the fold, and are shown even if another fold has the same. Plans are not
    shown, nor what the audit of a fold has found: the cross-validation reports it for all images.

    Args:
        reporter: Receiver of what remains.
        title: Name of the part in progress bars, such as "fold 2/5".
        seen: Warnings that were shown before; extended here.
        audit_path: Path of the fold's findings.
    """

    def __init__(self, reporter: Reporter, title: str, *, seen: set[str], audit_path: Path) -> None:
        self._reporter = reporter
        self._title = title
        self._seen = seen
        self._audit_path = str(audit_path)

    def note(self, message: str) -> None:
        """Show a message, unless it is on what the audit of the fold has found."""
        if self._audit_path not in message:
            self._reporter.note(message)

    def warn(self, message: str) -> None:
        """Show a warning once."""
        if message not in self._seen and self._audit_path not in message:
            self._seen.add(message)
            self._reporter.warn(message)

    def start(self, task: str, total: int) -> None:
        """Start a progress bar with the name of the fold."""
        self._reporter.start(f"{self._title}, {task}", total)

    def advance(self, steps: int = 1) -> None:
        """Advance the progress bar."""
        self._reporter.advance(steps)

    def finish(self) -> None:
        """Close the progress bar."""
        self._reporter.finish()

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Show the result of the linear probe."""
        self._reporter.show_probe(result)

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        """Show the metrics of a finished epoch."""
        self._reporter.show_epoch(row)


def describe_fold_result(fold: int, result: FitResult) -> str:
    """Return the line on a fold that is complete."""
    metrics = result.metrics["val"]
    # F1 of labels is at thresholds that these images chose: that of other folds is told at the end
    names = _LABEL_SCORES if MEAN_AVERAGE_PRECISION in metrics else _SCORES
    shown = [
        f"{format_metric_in_sentence(name)} {format_percent(value)}"
        for name in names
        if (value := metrics.get(name)) is not None
    ]
    loss = metrics["loss"]
    shown += [f"log loss {loss:.4f}"] if loss is not None else []
    return f"Fold {fold}: {', '.join(shown)} ({format_duration(result.seconds)})."
