"""Command that tests the learning rates of a run and stops before its first epoch."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.builders import Training, enable_cache
from finetune.commands.fit.launch_check import check_launch
from finetune.commands.fit.micro_batch_reduction import retry_with_smaller_micro_batches
from finetune.commands.fit.prepare import prepare_run
from finetune.commands.fit.process_group import get_device
from finetune.commands.fit.resume import suggest_resume
from finetune.commands.fit.single_run import create_run
from finetune.commands.fit.train import fit_start
from finetune.commands.measurement.lr_finder import LearningRateTest, run_lr_test, write_lr_test
from finetune.commands.measurement.measured import read_measured
from finetune.config.schema import Config
from finetune.distributed import signals
from finetune.distributed.launch import detect_launch
from finetune.errors import ConfigError
from finetune.system import run_folder
from finetune.system.run_folder import RunFolder
from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.loggers.run_tracker import RunTracker
from finetune.types import Reporter


@dataclass(frozen=True, slots=True)
class LearningRateResult:
    """Result of a learning-rate range test.

    Attributes:
        run_dir: Run folder, which ``resume`` trains from its first epoch.
        seconds: Wall time of this call.
        lr_test: Learning rate of the run, and the range test.
        plan: Plan of the run, see ``plan_fit``.
    """

    run_dir: Path
    seconds: float
    lr_test: LearningRateTest
    plan: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        run = RunFolder(self.run_dir)
        return {
            "run_dir": str(self.run_dir),
            "seconds": round(self.seconds, 3),
            "lr_find": self.lr_test.to_json(),
            "files": [str(run.lr_find_csv_path), str(run.lr_find_svg_path)],
            "plan": dict(self.plan),
        }


def find_learning_rate(config: Config, *, reporter: Reporter | None = None) -> LearningRateResult:
    """Test the learning rates of a new run after its linear probe, without training an epoch.

    One process does it, whatever the run will use: batches are those of all processes together.

    Args:
        config: Config of the run.
        reporter: Receiver of progress and messages.

    Raises:
        FinetuneError: Something that the user can fix.
        KeyboardInterrupt: The process was asked to stop; the run can be resumed.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    check_lr_find(config)
    with signals.allow_interrupts():
        training, plan, data = prepare_run(config, reporter)
        _check_epochs(is_probe_only=training.is_probe_only)
        run = create_run(training, plan, data)
        with run_folder.lock_run(run), suggest_resume(run, reporter):
            result = retry_with_smaller_micro_batches(
                run,
                training,
                lambda training: _measure_run(run, training, reporter),
                reporter=reporter,
            )
            write_lr_test(run, result)
    return LearningRateResult(run.path, time.monotonic() - start, result, plan)


def check_lr_find(config: Config) -> None:
    """Check that the learning rates of a new run can be tested in this process.

    Raises:
        ConfigError: The run has no epochs or continues another one, or a launcher has started
            several processes.
    """
    _check_epochs(is_probe_only=config.unfreeze.name == "linear_probe")
    num_folds = config.cross_validation.num_folds
    if num_folds is not None:
        raise ConfigError(
            f"--lr-find cannot be used with cross_validation.num_folds={num_folds}: it tests the "
            f"learning rates of one run. Leave one of them out; each fold measures its own rate."
        )
    if config.resume != "never":
        raise ConfigError(
            f"--lr-find cannot be used with resume={config.resume}: it tests the learning rates of "
            f"a new run, before its first epoch. Leave one of them out."
        )
    launch = check_launch(config.trainer, detect_launch())
    if launch is not None and launch.world_size > 1:
        raise ConfigError(
            f"--lr-find runs in one process, but {launch.launcher} started {launch.world_size}. "
            f"Run the command without {launch.launcher}; then train with all processes: "
            f"{launch.launcher} … finetune fit --resume RUN"
        )


def _check_epochs(*, is_probe_only: bool) -> None:
    """Check that a run has epochs.

    Raises:
        ConfigError: It ends with its linear probe.
    """
    if is_probe_only:
        raise ConfigError(
            "--lr-find cannot be used with --unfreeze linear_probe: a linear probe is fitted "
            "without a learning rate. Leave one of them out."
        )


def _measure_run(run: RunFolder, training: Training, reporter: Reporter) -> LearningRateTest:
    """Do what comes before the first epoch of a run, and test its learning rates."""
    training = enable_cache(training, reporter=reporter)
    tracker = RunTracker(MetricsCsv(run.metrics_path, reporter=reporter))
    training, _ = fit_start(run, training, tracker, reporter, None)
    measured = read_measured(run).get("optim.lr")
    return run_lr_test(
        training,
        get_device(training, None),
        reporter=reporter,
        measured_reason=None if measured is None else measured["reason"],
    )
