"""metrics.csv has each epoch once, whatever was repeated."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.training.loggers.experiment import MetricsCsv, RunTracker
from finetune.types import Reporter


class Rows(Reporter):
    """Remembers the finished rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))


def log_epoch(logger: MetricsCsv, epoch: int, loss: float, **more: float) -> None:
    """Record an epoch, counted from 0, of three steps."""
    metrics = {"val/loss": loss, "train/loss": loss + 1, "lr/head": 0.5, **more}
    logger.record(metrics, epoch=epoch, step=epoch * 3 + 3)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_row_an_epoch_with_the_numbers_of_training_and_validation(tmp_path: Path) -> None:
    reporter = Rows()
    logger = MetricsCsv(tmp_path / "metrics.csv", reporter=reporter)
    for epoch in range(3):
        log_epoch(logger, epoch, 0.1 * epoch)
    rows = read(tmp_path / "metrics.csv")
    assert list(rows[0])[:4] == ["epoch", "step", "seconds", "train/loss"]
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6"), ("3", "9")]
    assert [float(row["val/loss"]) for row in rows] == [0.0, 0.1, 0.2]
    assert [float(row["train/loss"]) for row in rows] == [1.0, 1.1, 1.2]
    assert all(float(row["seconds"]) >= 0 for row in rows)
    assert [row["epoch"] for row in reporter.rows] == [1, 2, 3]


def test_a_resumed_run_replaces_the_rows_that_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsCsv(path, reporter=Reporter())
    for epoch in range(4):
        log_epoch(first, epoch, 0.1)
    resumed = MetricsCsv(path, reporter=Reporter())
    log_epoch(resumed, 2, 0.7)  # the last checkpoint was written after the second epoch
    rows = read(path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["val/loss"]) for row in rows] == [0.1, 0.1, 0.7]
    log_epoch(resumed, 3, 0.8)
    assert [float(row["val/loss"]) for row in read(path)] == [0.1, 0.1, 0.7, 0.8]


def test_a_metric_that_comes_later_leaves_earlier_rows_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log_epoch(MetricsCsv(path, reporter=Reporter()), 0, 0.1)
    resumed = MetricsCsv(path, reporter=Reporter())
    log_epoch(resumed, 1, 0.2, **{"val/top5_accuracy": 0.9})
    assert [row["val/top5_accuracy"] for row in read(path)] == ["", "0.9"]


def test_without_wandb_there_is_the_file_alone(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path / "metrics.csv", reporter=Reporter())
    tracking = RunTracker(logger)
    assert tracking.loggers == []
    tracking.finish({}, classes=(), bundle_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
