"""Trackers that are absent, fail or lose their service; runs are in ``commands``."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.loggers.run_tracker import RunTracker
from finetune.training.loggers.tracked_records import Interruption
from finetune.types import Reporter


def test_run_tracker_without_trackers_has_no_loggers_and_writes_nothing(tmp_path: Path) -> None:
    tracker = RunTracker(MetricsCsv(tmp_path / "metrics.csv", reporter=Reporter()))
    assert tracker.loggers == []
    tracker.restore_epochs(num_epochs=1)
    tracker.interrupt(Interruption(is_resumable=True))
    assert list(tmp_path.iterdir()) == []


INTERRUPTED_AFTER_KILL = """
import os, signal, subprocess, sys
from pathlib import Path
from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.loggers.run_tracker import RunTracker
from finetune.training.loggers.tracked_records import Interruption
from finetune.training.loggers.trackers.wandb_start import start_wandb_run
from finetune.training.loggers.trackers.wandb_tracker import WandbTracker
from finetune.types import Reporter

run_dir = Path(sys.argv[1])
run = start_wandb_run(run_dir, run_id="abcd1234", mode="offline", project="p")
wandb = WandbTracker(run, state_path=run_dir / "n")
tracker = RunTracker(MetricsCsv(run_dir / "metrics.csv", reporter=Reporter()), [wandb])
command = ["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"]
services = subprocess.run(command, capture_output=True, text=True).stdout.split()
for pid in services:
    os.kill(int(pid), signal.SIGKILL)
tracker.interrupt(Interruption(is_resumable=True))
assert services and not (run_dir / "n").exists()
sys.exit(85)
"""


@pytest.mark.slow
def test_run_tracker_interrupt_without_wandb_service_exits_without_traceback(
    tmp_path: Path,
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AFTER_KILL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 85, process.stderr
    assert "Traceback" not in process.stderr
