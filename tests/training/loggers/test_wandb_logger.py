"""Tracking without W&B; runs with W&B are in ``tests/commands`` and ``tests/integration``."""

from pathlib import Path

from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.loggers.wandb_logger import RunTracker
from finetune.types import Reporter


def test_run_tracker_without_wandb_has_no_loggers_and_writes_nothing(tmp_path: Path) -> None:
    tracker = RunTracker(MetricsCsv(tmp_path / "metrics.csv", reporter=Reporter()))
    assert tracker.loggers == []
    tracker.relog_epochs(num_epochs=1)
    tracker.interrupt(is_resumable=True)
    tracker.finish({}, classes=(), bundle_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
