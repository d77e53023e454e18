"""Trackers of a run: the table of those that exist, their start and their end."""

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from finetune.builders import Training
from finetune.commands.fit.finalize import FinalEvaluation
from finetune.commands.fit.run_tracking.result_records import build_results
from finetune.commands.fit.run_tracking.run_origin import (
    RUN_ID_VARIABLE,
    SWEEP_VARIABLE,
    RunFamily,
    describe_dataset,
    describe_origin,
    find_family,
)
from finetune.config.sections.tracking import TrackingConfig
from finetune.distributed.signals import StopRequest
from finetune.errors import (
    INTERRUPTED_EXIT_CODE,
    PREEMPTED_EXIT_CODE,
    ConfigError,
    FinetuneError,
    OutOfMemoryError,
)
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.training.checkpoint_io import read_resume_state
from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.loggers.run_tracker import RunTracker
from finetune.training.loggers.tracked_records import Interruption
from finetune.training.loggers.tracker import Tracker
from finetune.types import Reporter


@dataclass(frozen=True, slots=True)
class TrackerKind:
    """Row of the table of trackers.

    Attributes:
        key: Config key that turns the tracker on.
        is_enabled: Whether a config asks for it.
        open: Function that starts or continues the tracker of a run.
        modules: Modules that it needs and that are no dependency of this package.
        extra: Extra of this package with these modules; empty for none.
    """

    key: str
    is_enabled: Callable[[TrackingConfig], bool]
    open: Callable[[RunFolder, TrackingConfig, RunFamily], Tracker]
    modules: Sequence[str] = ()
    extra: str = ""


def _open_wandb(run: RunFolder, tracking: TrackingConfig, family: RunFamily) -> Tracker:
    from finetune.training.loggers.trackers.wandb_start import start_wandb_run
    from finetune.training.loggers.trackers.wandb_tracker import WandbTracker

    if not run.wandb_id_path.is_file():
        write_text(run.wandb_id_path, _choose_wandb_id(run) + "\n")
    wandb_run = start_wandb_run(
        run.path,
        run_id=run.wandb_id_path.read_text(encoding="utf-8").strip(),
        mode=tracking.wandb,
        project=tracking.project,
        entity=tracking.entity,
        name=tracking.name or run.path.name,
        tags=tracking.tags,
        group=family.group,
        job_type=family.job_type,
    )
    return WandbTracker(wandb_run, state_path=run.wandb_epochs_path, registry=tracking.registry)


def _open_tensorboard(run: RunFolder, tracking: TrackingConfig, family: RunFamily) -> Tracker:
    from finetune.training.loggers.trackers.tensorboard_tracker import TensorBoardTracker

    return TensorBoardTracker(run.tensorboard_dir)


def _open_mlflow(run: RunFolder, tracking: TrackingConfig, family: RunFamily) -> Tracker:
    from finetune.training.loggers.trackers.mlflow_tracker import MLflowTracker, start_mlflow_run

    assert tracking.mlflow is not None, "enabled by its URI"
    path = run.mlflow_id_path
    logger = start_mlflow_run(
        tracking.mlflow,
        run_dir=run.path,
        experiment=tracking.project,
        run_id=path.read_text(encoding="utf-8").strip() if path.is_file() else None,
        name=tracking.name or run.path.name,
        tags=tracking.tags,
        group=family.group,
    )
    write_text(path, f"{logger.run_id}\n")
    return MLflowTracker(logger)


TRACKERS: tuple[TrackerKind, ...] = (
    TrackerKind("tracking.wandb", lambda tracking: tracking.wandb != "off", _open_wandb),
    TrackerKind(
        "tracking.tensorboard",
        lambda tracking: tracking.tensorboard,
        _open_tensorboard,
        modules=("tensorboard", "matplotlib"),
        extra="tensorboard",
    ),
    TrackerKind(
        "tracking.mlflow",
        lambda tracking: tracking.mlflow is not None,
        _open_mlflow,
        modules=("mlflow", "matplotlib"),
        extra="mlflow",
    ),
)
"""All trackers, in the order in which they are started."""


def check_trackers(tracking: TrackingConfig) -> None:
    """Check that the modules of all trackers that a config asks for are installed.

    Raises:
        ConfigError: One is missing; the message has the command that installs it.
    """
    for kind in TRACKERS:
        if not kind.is_enabled(tracking):
            continue
        for module in kind.modules:
            if importlib.util.find_spec(module) is None:
                raise ConfigError(
                    f"{kind.key} needs {module}, which is not installed: "
                    f"pip install 'finetune-vision[{kind.extra}]'"
                )


def open_tracking(
    run: RunFolder, training: Training, reporter: Reporter, *, rank: int
) -> RunTracker:
    """Return the trackers of a run; only rank 0 has other ones than ``metrics.csv``.

    Raises:
        ConfigError: A tracker is not installed.
        TrackingError: A tracker does not start.
    """
    tracking = training.config.tracking
    metrics = MetricsCsv(run.metrics_path, reporter=reporter)
    state = read_resume_state(run)
    num_epochs = 0 if state is None else state.completed_epochs
    metrics.drop_rows_after(num_epochs)
    if rank > 0:
        return RunTracker(metrics)
    check_trackers(tracking)
    family = find_family(run, tracking)
    trackers: list[Tracker] = []
    tracker = RunTracker(metrics, trackers, reporter)
    with interrupt_on_error(tracker, run):
        trackers.extend(
            kind.open(run, tracking, family) for kind in TRACKERS if kind.is_enabled(tracking)
        )
    if trackers:
        update_origin(tracker, run, training)
        tracker.log_dataset(describe_dataset(run, training.manifest))
        tracker.log_probe()
        tracker.restore_epochs(num_epochs=num_epochs)
    return tracker


def update_origin(tracker: RunTracker, run: RunFolder, training: Training) -> None:
    """Log the config of a run, at its start and once settings have been measured."""
    if tracker.trackers:
        dataset = describe_dataset(run, training.manifest)
        tracker.log_config(describe_origin(training, dataset))


def finish_tracking(
    tracker: RunTracker, run: RunFolder, training: Training, evaluation: FinalEvaluation
) -> None:
    """Log the results of a run, whose bundle and report are written, and end it in all trackers."""
    if not tracker.trackers:
        return
    try:
        results = build_results(run, training, evaluation)
    except Exception as error:  # the model is complete
        reason = str(error).partition("\n")[0].rstrip(".") or repr(error)
        tracker.reporter.warn(f"The results were not logged: {reason}. The model is complete.")
        tracker.interrupt(Interruption(is_resumable=False, exit_code=0))
        return
    tracker.finish(results)


@contextmanager
def interrupt_on_error(tracker: RunTracker, run: RunFolder) -> Iterator[None]:
    """End this part of the run in all trackers if an error ends the training."""
    try:
        yield
    except BaseException as error:
        tracker.interrupt(_describe_interruption(error, run))
        raise


def _describe_interruption(error: BaseException, run: RunFolder) -> Interruption:
    if isinstance(error, StopRequest):
        is_preempted = error.signum != signal.SIGINT
        code = PREEMPTED_EXIT_CODE if is_preempted else INTERRUPTED_EXIT_CODE
        return Interruption(is_resumable=True, is_preempted=is_preempted, exit_code=code)
    best = run.best_checkpoint_path
    return Interruption(
        # the same process continues with smaller micro-batches
        is_resumable=isinstance(error, OutOfMemoryError),
        exit_code=error.exit_code if isinstance(error, FinetuneError) else 1,
        checkpoint_path=best if best.is_file() else None,
    )


def _choose_wandb_id(run: RunFolder) -> str:
    """Return the id of a new W&B run: that of the sweep's run if an agent started this process.

    Folds of a cross-validation are several runs and have ids of their own.
    """
    is_in_sweep = os.environ.get(SWEEP_VARIABLE) and run.cross_validation_run is run
    return (os.environ.get(RUN_ID_VARIABLE) if is_in_sweep else None) or uuid4().hex[:8]
