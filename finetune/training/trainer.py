"""Lightning trainer with safe settings in place of defaults that are silently wrong."""

import logging
import os
import signal
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import PassThroughProfiler

from finetune.data.dataset import translate_worker_errors
from finetune.diagnosis.divergence_error import DivergenceError
from finetune.distributed import signals
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.peer_errors import explain_peer_loss
from finetune.distributed.signals import StopRequest
from finetune.errors import OutOfMemoryError, RunFolderError
from finetune.system.files import explain_disk_error
from finetune.system.hardware import explain_out_of_memory, is_out_of_memory
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.checkpoint import build_checkpoint_callback
from finetune.training.callbacks.early_stopping import ResumableEarlyStopping
from finetune.training.callbacks.mid_epoch_resume import MidEpochResume
from finetune.training.callbacks.preemption import PreemptionCheckpoint
from finetune.training.checkpoint_io import AtomicCheckpointIO
from finetune.training.cluster_environment import LaunchEnvironment
from finetune.training.curves.kept_models import describe_kept_models
from finetune.training.datamodule import ImageDataModule
from finetune.training.module import ClassificationModule
from finetune.training.strategy import choose_strategy

_EXPECTED_WARNINGS = (
    # frozen groups are in eval mode deliberately
    r".*module\(s\) in eval mode at the start of training.*",
    # the number of workers is chosen from the available cores
    r".*does not have many workers.*",
    r".*This DataLoader will create .* worker processes.*",
    # every rank logs the same value, computed from the gathered predictions
    r".*It is recommended to use .*sync_dist=True.*",
    # an epoch may have fewer steps than the interval
    r".*The number of training batches .* is smaller than the logging interval.*",
    # the run folder is created before the trainer, with the config in it
    r".*Checkpoint directory .* exists and is not empty.*",
    # an unused GPU is the user's choice
    r".*GPU available but not used.*",
    # on a machine with SLURM's clients; finetune has a check of its own for missing srun
    r".*The `srun` command is available on your system but is not used.*",
    # the loader skips the completed batches
    r".*resuming from a checkpoint that ended before the epoch ended.*",
    # Lightning itself uses a class that torch has renamed
    r".*LeafSpec.*is deprecated.*",
)


class NoProfiler(PassThroughProfiler):
    """Profiler without measurements; cheaper than Lightning's, which runs some 50 times a step."""

    _NULL_CONTEXT = nullcontext("")

    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]
        """Return the same null context for every action."""
        return self._NULL_CONTEXT


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """Settings of the training loop.

    Attributes:
        max_epochs: Number of epochs of the run.
        monitor: Validation metric that chooses the best epoch: a loss, or one to maximise; None
            validates nothing, and keeps ``last.ckpt`` alone.
        accelerator: "cpu", "cuda" or "mps".
        devices: Processes per node.
        num_nodes: Number of nodes.
        precision: Lightning's name of the precision.
        accumulate_grad_batches: Batches per optimizer step.
        gradient_clip: Maximum gradient norm; 0 disables clipping.
        deterministic: Whether nondeterministic kernels raise an error.
        patience: Epochs that are not better than ``best.ckpt`` before early stopping; None never
            stops early.
        strategy: "ddp" or "fsdp", for several processes.
        live_buffers: Whether training updates BatchNorm's statistics.
        collective_timeout_seconds: Maximum time that a process waits for another one.
        checkpoint_interval_minutes: Interval of checkpoints within an epoch; None writes none.
    """

    max_epochs: int
    monitor: str | None
    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip: float = 1.0
    deterministic: bool = False
    patience: int | None = None
    strategy: str = "ddp"
    live_buffers: bool = True
    collective_timeout_seconds: float = 600.0
    checkpoint_interval_minutes: float | None = None


def create_trainer(
    run_dir: Path,
    options: TrainerOptions,
    *,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    launch: LaunchInfo | None = None,
    baseline: float | None = None,
) -> Trainer:
    """Create a trainer that keeps ``checkpoints/best.ckpt`` and ``last.ckpt`` in a run folder.

    Args:
        run_dir: The run folder.
        options: Settings of the training loop.
        callbacks: Callbacks that run before the checkpoints are written.
        loggers: Loggers that receive every metric.
        launch: Rank and world size of this process; None for a single process.
        baseline: Score of the model that ``best.ckpt`` holds before the first epoch, on all ranks.
    """
    _silence_lightning()
    last_path = run_dir / "checkpoints" / "last.ckpt"
    timeout = timedelta(seconds=options.collective_timeout_seconds)
    all_callbacks: list[Callback] = [
        *callbacks,
        MidEpochResume(),
        PreemptionCheckpoint(
            last_path, every_minutes=options.checkpoint_interval_minutes, timeout=timeout
        ),
    ]
    if options.monitor is not None:
        all_callbacks += _build_monitor_callbacks(run_dir, options, options.monitor, baseline)
    # the last checkpoint is written after the best, so that it holds the best score
    all_callbacks.append(build_checkpoint_callback(run_dir, "last"))
    if not torch.cuda.is_available():
        # Lightning lets torch query the driver for GPUs, which each optimizer step would repeat
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    trainer = Trainer(
        default_root_dir=run_dir,
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=choose_strategy(
            options.strategy,
            accelerator=options.accelerator,
            num_processes=options.devices * options.num_nodes,
            timeout=timeout,
            broadcast_buffers=options.live_buffers,
        ),
        precision=options.precision,  # type: ignore[arg-type]
        max_epochs=options.max_epochs,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip or None,
        deterministic=options.deterministic,
        callbacks=all_callbacks,
        logger=list(loggers),
        plugins=[AtomicCheckpointIO(), LaunchEnvironment(launch)],
        log_every_n_steps=10**9,
        profiler=NoProfiler(),
        num_sanity_val_steps=0,
        limit_val_batches=0 if options.monitor is None else 1.0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    _disable_signal_handling(trainer)
    return trainer


def _build_monitor_callbacks(
    run_dir: Path, options: TrainerOptions, monitor: str, baseline: float | None
) -> list[Callback]:
    """Return the callbacks that stop early and keep the best epoch by a validation metric."""
    mode = "min" if monitor.endswith("loss") else "max"
    best = build_checkpoint_callback(run_dir, "best", monitor=monitor, mode=mode)
    stopping = ResumableEarlyStopping(monitor, patience=options.patience, mode=mode)
    if baseline is not None:
        best.set_baseline(baseline)
        stopping.set_baseline(baseline)
    return [stopping, best]


def fit(
    trainer: Trainer,
    module: ClassificationModule,
    datamodule: ImageDataModule,
    *,
    checkpoint_path: Path | None,
) -> None:
    """Train, from a checkpoint if one is given.

    Raises:
        StopRequest: A signal requested the stop and everything is saved, or Ctrl-C was pressed
            twice.
        StorageError: A checkpoint could not be written.
        OutOfMemoryError: A step needs more memory than is available.
        DivergenceError: Training diverged.
        TrainingError: Another process of the run or a data loader worker died.
    """
    _reject_foreign_checkpoints(Path(trainer.default_root_dir))
    sigint_handler = signal.getsignal(signal.SIGINT)
    try:
        with signals.defer(), translate_worker_errors():
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint_path, weights_only=True)
    except SystemExit as error:
        signal.signal(signal.SIGINT, sigint_handler)  # which Lightning replaced before exiting
        if (interruption := _find_keyboard_interrupt(error)) is None:
            raise
        raise interruption from None
    except Exception as error:
        if (interruption := _find_keyboard_interrupt(error)) is not None:
            raise interruption from None
        if isinstance(error, DivergenceError):
            kept = describe_kept_models(RunFolder(Path(trainer.default_root_dir)))
            raise DivergenceError(f"{error} {kept}", error.divergence) from error
        if is_out_of_memory(error):
            # without the cause: its traceback holds every tensor of the step
            raise OutOfMemoryError(explain_out_of_memory(error)) from None
        peer_error = explain_peer_loss(error)
        if peer_error is not None and (signum := signals.get_pending_signal()):
            raise StopRequest(signum) from error  # the other ranks received it slightly earlier
        explained = explain_disk_error(error, trainer.default_root_dir) or peer_error
        if explained is None or explained is error:
            raise
        raise explained from error


def _find_keyboard_interrupt(error: BaseException) -> KeyboardInterrupt | None:
    """Return the Ctrl-C that caused an error, such as one while a checkpoint was being written."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause


def _reject_foreign_checkpoints(run_dir: Path) -> None:
    """Reject checkpoints that Lightning would load unasked under SLURM (Lightning#12369).

    Raises:
        RunFolderError: There is such a checkpoint.
    """
    foreign = next(run_dir.glob("hpc_ckpt_*.ckpt"), None)
    if foreign is not None:
        raise RunFolderError(
            f"{foreign} is not a checkpoint of finetune, but under SLURM Lightning would load it "
            f"instead of the run's own. Move it elsewhere."
        )


def _disable_signal_handling(trainer: Trainer) -> None:
    """Disable Lightning's signal handling, and its exchange about signals in every step.

    Its handler waits for the other ranks from within (Lightning#21406), and the exchange
    synchronizes with the GPU in each step (Lightning#21487). ``PreemptionCheckpoint`` replaces
    both.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def _silence_lightning() -> None:
    """Keep Lightning's messages off the console, which belongs to the reporter."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
