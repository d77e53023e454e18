"""Metrics of a run in ``metrics.csv`` and in Weights & Biases."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from finetune.config.resolved import ResolvedConfig
from finetune.distributed.signals import StopRequest
from finetune.errors import OutOfMemoryError
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.training.checkpoint_io import read_resume_state
from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.loggers.wandb_logger import RunTracker, create_wandb_logger
from finetune.types import Reporter


def open_tracking(
    run: RunFolder, config: ResolvedConfig, reporter: Reporter, *, rank: int
) -> RunTracker:
    """Return the trackers of a run; only rank 0 continues its W&B run."""
    tracking = config.tracking
    metrics = MetricsCsv(run.metrics_path, reporter=reporter)
    state = read_resume_state(run)
    num_epochs = 0 if state is None else state.completed_epochs
    metrics.drop_rows_after(num_epochs)
    if tracking.wandb == "off" or rank > 0:
        return RunTracker(metrics)
    if not run.wandb_id_path.is_file():
        write_text(run.wandb_id_path, uuid4().hex[:8] + "\n")
    wandb = create_wandb_logger(
        run.path,
        run_id=run.wandb_id_path.read_text().strip(),
        mode=tracking.wandb,
        project=tracking.project,
        entity=tracking.entity,
        name=tracking.name or run.path.name,
        tags=tracking.tags,
        group=tracking.group,
        config=config.model_dump(mode="json"),
    )
    tracker = RunTracker(metrics, wandb, run.wandb_epochs_path)
    tracker.relog_epochs(num_epochs=num_epochs)
    return tracker


@contextmanager
def interrupt_on_error(tracker: RunTracker) -> Iterator[None]:
    """Finish this part of the W&B run if an error ends the training."""
    try:
        yield
    except BaseException as error:
        tracker.interrupt(is_resumable=isinstance(error, StopRequest | OutOfMemoryError))
        raise
