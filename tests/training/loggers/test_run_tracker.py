"""Trackers that are absent, fail or lose their service; runs are in ``commands``."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.loggers.run_tracker import RunTracker
from finetune.training.loggers.summary_goals import get_goal
from finetune.training.loggers.tracked_records import Interruption
from finetune.training.loggers.tracker import Tracker
from finetune.types import Reporter
from tests.support.helpers import RecordingReporter


def test_run_tracker_without_trackers_has_no_loggers_and_writes_nothing(tmp_path: Path) -> None:
    tracker = RunTracker(MetricsCsv(tmp_path / "metrics.csv", reporter=Reporter()))
    assert tracker.loggers == []
    tracker.restore_epochs(num_epochs=1)
    tracker.interrupt(Interruption(is_resumable=True))
    assert list(tmp_path.iterdir()) == []


class RecordingTracker:
    """Tracker that records its calls, and fails in those that are named."""

    def __init__(self, name: str, *, fails_in: Sequence[str] = ()) -> None:
        self.name = name
        self.calls: list[str] = []
        self.epochs: list[tuple[int, dict[str, float]]] = []
        self._fails_in = fails_in

    def __getattr__(self, call: str) -> Callable[..., None]:
        def record(*args: Any, **kwargs: Any) -> None:
            self.calls.append(call)
            if call == "log_epoch":
                self.epochs.append((kwargs["step"], dict(args[0])))
            if call in self._fails_in:
                raise ConnectionError("server is gone.\nDetails")

        return record


def build_tracker(folder: Path, *trackers: RecordingTracker) -> tuple[RunTracker, list[str]]:
    """Return the trackers of a run, and the list of their warnings."""
    reporter = RecordingReporter()
    metrics = MetricsCsv(folder / "metrics.csv", reporter=Reporter())
    return RunTracker(metrics, cast(Sequence[Tracker], trackers), reporter), reporter.warnings


def test_tracker_that_fails_is_reported_once_and_others_continue(tmp_path: Path) -> None:
    broken = RecordingTracker("MLflow", fails_in=("log_epoch", "interrupt"))
    whole = RecordingTracker("TensorBoard")
    tracker, warnings = build_tracker(tmp_path, broken, whole)
    for step in (1, 2):
        tracker.log_epoch({"train/loss": 1.0}, step=step)
    tracker.interrupt(Interruption(is_resumable=True))
    assert whole.calls == ["log_epoch", "log_epoch", "interrupt"]
    assert broken.calls == ["log_epoch", "interrupt"], "its run is ended all the same"
    assert len(warnings) == 1
    assert warnings[0].startswith("MLflow failed and is left out from now on: server is gone. The")


def test_epoch_logger_joins_the_two_parts_of_an_epoch(tmp_path: Path) -> None:
    recorder = RecordingTracker("TensorBoard")
    (logger,) = build_tracker(tmp_path, recorder)[0].loggers
    logger.log_metrics({"val/loss": 2.0, "epoch": 0}, 3)
    assert recorder.epochs == []
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, 3)
    assert recorder.epochs == [(3, {"val/loss": 2.0, "train/loss": 1.0, "epoch": 0})]


def test_probe_is_the_baseline_and_its_row_no_epoch(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,seconds,train/loss,val/loss\n0,0,1.5,0.1,0.2\n1,4,2.5,0.3,0.4\n"
    )
    recorder = RecordingTracker("TensorBoard")
    tracker, _ = build_tracker(tmp_path, recorder)
    tracker.restore_epochs(num_epochs=0)
    tracker.log_probe()
    assert recorder.calls == ["log_summary"]
    tracker.restore_epochs(num_epochs=1)
    assert recorder.calls == ["log_summary", "restore_epochs"]


@pytest.mark.parametrize(
    ("name", "goal"),
    [
        ("val/accuracy", "max"),
        ("train_eval/macro_f1", "max"),
        ("val/loss", "min"),
        ("train/loss", "min"),
        ("val/calibrated_loss", "min"),
        ("lr/head", "last"),
        ("grad_norm/layer4", "last"),
        ("images_per_second", "last"),
        ("epoch", "last"),
    ],
)
def test_goal_of_a_metric(name: str, goal: str) -> None:
    assert get_goal(name) == goal


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
