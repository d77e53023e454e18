"""A Lightning trainer with the defaults that upstream gets silently wrong set right."""

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
from finetune.distributed import signals
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.peer_errors import explain_peer_loss
from finetune.distributed.signals import StopRequest
from finetune.errors import OutOfMemoryError, RunFolderError
from finetune.system.files import explain_disk_error
from finetune.system.hardware import explain_out_of_memory, is_out_of_memory
from finetune.training.callbacks.checkpoint import (
    AtomicCheckpointIO,
    ResumableEarlyStopping,
    build_checkpoint_callback,
)
from finetune.training.callbacks.mid_epoch_resume import MidEpochResume
from finetune.training.callbacks.preemption import PreemptionCheckpoint
from finetune.training.cluster_environment import LaunchEnvironment
from finetune.training.datamodule import ImageDataModule
from finetune.training.module import ClassificationModule
from finetune.training.strategy import choose_strategy

_EXPECTED_WARNINGS = (
    # frozen groups are in eval mode on purpose
    r".*module\(s\) in eval mode at the start of training.*",
    # how many workers read is chosen from the cores that there are
    r".*does not have many workers.*",
    r".*This DataLoader will create .* worker processes.*",
    # every rank logs the same number, computed from the gathered predictions
    r".*It is recommended to use .*sync_dist=True.*",
    # an epoch may well have fewer steps than the interval
    r".*The number of training batches .* is smaller than the logging interval.*",
    # the run folder is made before the trainer, with the config in it
    r".*Checkpoint directory .* exists and is not empty.*",
    # a GPU that stays unused is the user's choice
    r".*GPU available but not used.*",
    # on a machine with SLURM's clients; what a job must start with srun is checked by ourselves
    r".*The `srun` command is available on your system but is not used.*",
    # the loader starts behind the batches that are done
    r".*resuming from a checkpoint that ended before the epoch ended.*",
    # Lightning's own use of a class that torch renamed
    r".*LeafSpec.*is deprecated.*",
)


class NoProfiler(PassThroughProfiler):
    """Measures nothing, at less than Lightning's own: it is asked some 50 times a step."""

    _NULL_CONTEXT = nullcontext("")

    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]
        """Return the same context each time."""
        return self._NULL_CONTEXT


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """How the loop runs.

    Attributes:
        max_epochs: Last epoch.
        monitor: Validation metric of the best epoch, "val/loss" or one that grows.
        accelerator: "cpu", "cuda" or "mps".
        devices: Processes a machine.
        num_nodes: Machines.
        precision: As Lightning names it.
        accumulate_grad_batches: Batches a step.
        gradient_clip: Largest norm; 0 is no limit.
        deterministic: Refuse kernels whose results differ.
        patience: Epochs without a better one; None never stops.
        strategy: "ddp" or "fsdp", for several processes.
        live_buffers: Whether BatchNorm's statistics follow the batches.
        collective_timeout_seconds: How long a process waits for another one.
        checkpoint_interval_minutes: From one checkpoint in mid-epoch to the next; None writes none.
    """

    max_epochs: int
    monitor: str
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
    """Return a trainer that keeps ``checkpoints/best.ckpt`` and ``last.ckpt`` in a run folder.

    Args:
        run_dir: The run folder.
        options: How the loop runs.
        callbacks: Run before the checkpoints are written.
        loggers: Get every metric.
        launch: This process; None stands alone.
        baseline: Score of what ``best.ckpt`` holds before the first epoch, on all ranks.
    """
    _silence_lightning()
    mode = "min" if options.monitor.endswith("loss") else "max"
    last = run_dir / "checkpoints" / "last.ckpt"
    timeout = timedelta(seconds=options.collective_timeout_seconds)
    kept: list[Callback] = [
        *callbacks,
        MidEpochResume(),
        PreemptionCheckpoint(
            last, every_minutes=options.checkpoint_interval_minutes, timeout=timeout
        ),
    ]
    if options.patience is not None:
        kept.append(
            ResumableEarlyStopping(
                options.monitor,
                patience=options.patience,
                mode=mode,
                check_on_train_epoch_end=True,
            )
        )
    best = build_checkpoint_callback(run_dir, "best", monitor=options.monitor, mode=mode)
    if baseline is not None:
        best.set_baseline(baseline)
    # the last checkpoint is written after the best, so that it knows the best score
    kept += [best, build_checkpoint_callback(run_dir, "last")]
    if not torch.cuda.is_available():
        # Lightning lets torch ask the driver for GPUs, and each optimizer step asks again
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
        callbacks=kept,
        logger=list(loggers),
        plugins=[AtomicCheckpointIO(), LaunchEnvironment(launch)],
        log_every_n_steps=10**9,
        profiler=NoProfiler(),
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    _disable_signal_handling(trainer)
    return trainer


def fit(
    trainer: Trainer,
    module: ClassificationModule,
    datamodule: ImageDataModule,
    *,
    checkpoint_path: Path | None,
) -> None:
    """Train, from a checkpoint if there is one.

    Raises:
        StopRequest: A signal asked for it, and all is saved; or a second Ctrl-C.
        StorageError: A checkpoint could not be written.
        OutOfMemoryError: A step needs more memory than there is.
        TrainingError: Another process of the run is gone, or one that reads images.
    """
    _reject_foreign_checkpoints(Path(trainer.default_root_dir))
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        with signals.defer(), translate_worker_errors():
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint_path, weights_only=True)
    except SystemExit as error:
        signal.signal(signal.SIGINT, ctrl_c)  # Lightning ignores it from here on, and would exit
        if (interruption := _find_keyboard_interrupt(error)) is None:
            raise
        raise interruption from None
    except Exception as error:
        if (interruption := _find_keyboard_interrupt(error)) is not None:
            raise interruption from None
        if is_out_of_memory(error):
            # without the cause: its traceback holds every tensor of the step
            raise OutOfMemoryError(explain_out_of_memory(error)) from None
        lost = explain_peer_loss(error)
        if lost is not None and signals.get_pending_signal():
            raise StopRequest(
                signals.get_pending_signal()
            ) from error  # the others were a little quicker
        explained = explain_disk_error(error, trainer.default_root_dir) or lost
        if explained is None or explained is error:
            raise
        raise explained from error


def _find_keyboard_interrupt(error: BaseException) -> KeyboardInterrupt | None:
    """Return what lies behind an error, as a Ctrl-C in the middle of writing a checkpoint."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen


def _reject_foreign_checkpoints(run_dir: Path) -> None:
    """Refuse what Lightning would load of itself under SLURM (Lightning#12369).

    Raises:
        RunFolderError: Names the file.
    """
    foreign = next(run_dir.glob("hpc_ckpt_*.ckpt"), None)
    if foreign is not None:
        raise RunFolderError(
            f"{foreign} is no checkpoint of finetune, and Lightning would load it in the place of "
            f"the run's own. Move it elsewhere."
        )


def _disable_signal_handling(trainer: Trainer) -> None:
    """Keep Lightning from handling signals, and from asking all ranks about them at every step.

    Its handler waits for the other ranks from within (Lightning#21406), and the question stops a
    GPU at each step (Lightning#21487). ``PreemptionCheckpoint`` does both in its own way.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def _silence_lightning() -> None:
    """Leave the console to the reporter."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
