"""RowReporter of ``metrics.csv``, also after a resume."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.types import Reporter


class RowReporter(Reporter):
    """Reporter that records the rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))


def record_epoch(metrics_csv: MetricsCsv, epoch: int, loss: float, **more: float) -> None:
    """Record an epoch, counted from 0, of three steps."""
    metrics = {"val/loss": loss, "train/loss": loss + 1, "lr/head": 0.5, **more}
    metrics_csv.record(metrics, epoch=epoch, step=epoch * 3 + 3)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_metrics_csv_writes_one_row_per_epoch(tmp_path: Path) -> None:
    reporter = RowReporter()
    metrics_csv = MetricsCsv(tmp_path / "metrics.csv", reporter=reporter)
    for epoch in range(3):
        record_epoch(metrics_csv, epoch, 0.1 * epoch)
    rows = read_rows(tmp_path / "metrics.csv")
    assert list(rows[0])[:4] == ["epoch", "step", "seconds", "train/loss"]
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6"), ("3", "9")]
    assert [float(row["val/loss"]) for row in rows] == [0.0, 0.1, 0.2]
    assert [float(row["train/loss"]) for row in rows] == [1.0, 1.1, 1.2]
    assert all(float(row["seconds"]) >= 0 for row in rows)
    assert [row["epoch"] for row in reporter.rows] == [1, 2, 3]


def test_metrics_csv_resume_replaces_repeated_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsCsv(path, reporter=Reporter())
    for epoch in range(4):
        record_epoch(first, epoch, 0.1)
    resumed = MetricsCsv(path, reporter=Reporter())
    record_epoch(resumed, 2, 0.7)  # the last checkpoint was written after the second epoch
    rows = read_rows(path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["val/loss"]) for row in rows] == [0.1, 0.1, 0.7]
    record_epoch(resumed, 3, 0.8)
    assert [float(row["val/loss"]) for row in read_rows(path)] == [0.1, 0.1, 0.7, 0.8]


def test_metrics_csv_later_metric_leaves_earlier_cells_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    record_epoch(MetricsCsv(path, reporter=Reporter()), 0, 0.1)
    resumed = MetricsCsv(path, reporter=Reporter())
    record_epoch(resumed, 1, 0.2, **{"val/top5_accuracy": 0.9})
    assert [row["val/top5_accuracy"] for row in read_rows(path)] == ["", "0.9"]


def test_metrics_csv_later_group_stands_among_the_others_with_its_prefix(tmp_path: Path) -> None:
    """As a head that starts at zero, whose relative change is known from the second epoch on."""
    path = tmp_path / "metrics.csv"
    metrics_csv = MetricsCsv(path, reporter=Reporter())
    record_epoch(metrics_csv, 0, 0.1, **{"weight_change/conv1": 0.1, "images_per_second": 1.0})
    changes = {f"weight_change/{name}": 0.1 for name in ("head", "conv1", "stem")}
    record_epoch(metrics_csv, 1, 0.2, **changes, images_per_second=1.0)
    rows = read_rows(path)
    assert list(rows[0])[-4:] == [*changes, "images_per_second"]
    assert [row["weight_change/head"] for row in rows] == ["", "0.1"]
