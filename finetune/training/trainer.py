"""A Lightning trainer with the defaults that upstream gets silently wrong set right."""

import logging
import os
import re
import signal
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import DDPStrategy

from finetune.errors import OutOfMemoryError, TrainingError
from finetune.machine import explain_out_of_memory, is_out_of_memory
from finetune.storage import explain_disk_error
from finetune.training.checkpoints import PatientStopping, WholeCheckpoints, keep_checkpoint
from finetune.training.datamodule import ImageDataModule
from finetune.training.launch import outer_launch
from finetune.training.module import ClassificationModule

COLLECTIVE_TIMEOUT = timedelta(minutes=10)

_LOST_PROCESS = re.compile(
    r"gloo/transport|NCCL|connection (was )?(closed|reset)|clients joined", re.IGNORECASE
)

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
    # Lightning's own use of a class that torch renamed
    r".*LeafSpec.*is deprecated.*",
)


class NoProfiler(PassThroughProfiler):
    """Measures nothing, at less than Lightning's own: it is asked some 50 times a step."""

    _NOTHING = nullcontext("")

    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]
        """Return the same context each time."""
        return self._NOTHING


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """How the loop runs.

    Attributes:
        epochs: Last epoch.
        monitor: Validation metric of the best epoch, "val/loss" or one that grows.
        accelerator: "cpu", "cuda" or "mps".
        devices: Processes a machine.
        num_nodes: Machines.
        precision: As Lightning names it.
        accumulate: Batches a step.
        gradient_clip: Largest norm; 0 is no limit.
        deterministic: Refuse kernels whose results differ.
        early_stopping: Epochs without a better one; None never stops.
    """

    epochs: int
    monitor: str
    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    accumulate: int = 1
    gradient_clip: float = 1.0
    deterministic: bool = False
    early_stopping: int | None = None


def create_trainer(
    folder: Path,
    options: TrainerOptions,
    *,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> Trainer:
    """Return a trainer that keeps ``checkpoints/best.ckpt`` and ``last.ckpt`` in a run folder.

    Args:
        folder: The run folder.
        options: How the loop runs.
        callbacks: Run before the checkpoints are written.
        loggers: Get every metric.
    """
    _be_quiet()
    mode = "min" if options.monitor.endswith("loss") else "max"
    kept: list[Callback] = [*callbacks]
    if options.early_stopping is not None:
        kept.append(
            PatientStopping(
                options.monitor,
                patience=options.early_stopping,
                mode=mode,
                check_on_train_epoch_end=True,
            )
        )
    # the last checkpoint is written after the best, so that it knows the best score
    kept += [
        keep_checkpoint(folder, "best", monitor=options.monitor, mode=mode),
        keep_checkpoint(folder, "last"),
    ]
    plugins: list[Any] = [WholeCheckpoints()]
    launch = outer_launch()
    if launch is None:
        # an allocation alone, without srun, must not be taken for the launcher of our processes
        plugins.append(LightningEnvironment())
    elif SLURMEnvironment.detect() and "TORCHELASTIC_RUN_ID" not in os.environ:
        # Lightning would save inside the signal handler, which hangs (Lightning#21406)
        plugins.append(SLURMEnvironment(auto_requeue=False))
    strategy: Any = "auto"
    if options.devices * options.num_nodes > 1:
        strategy = DDPStrategy(
            timeout=COLLECTIVE_TIMEOUT,
            gradient_as_bucket_view=True,
            process_group_backend="nccl" if options.accelerator == "cuda" else "gloo",
        )
    if not torch.cuda.is_available():
        # Lightning lets torch ask the driver for GPUs, and each optimizer step asks again
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    return Trainer(
        default_root_dir=folder,
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy,
        precision=options.precision,  # type: ignore[arg-type]
        max_epochs=options.epochs,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.gradient_clip or None,
        deterministic=options.deterministic,
        callbacks=kept,
        logger=list(loggers),
        plugins=plugins,
        log_every_n_steps=10**9,
        profiler=NoProfiler(),
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def fit(
    trainer: Trainer,
    module: ClassificationModule,
    data: ImageDataModule,
    *,
    checkpoint: Path | None,
) -> None:
    """Train, from a checkpoint if there is one, and end the process group in good order.

    Raises:
        KeyboardInterrupt: The user asked for it; Lightning would end the process itself.
        StorageError: A checkpoint could not be written.
        OutOfMemoryError: A step needs more memory than there is.
        TrainingError: Another process of the run is gone.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        if _was_interrupted(error):
            raise KeyboardInterrupt from None
        if is_out_of_memory(error):
            # without the cause: its traceback holds every tensor of the step
            raise OutOfMemoryError(explain_out_of_memory(error)) from None
        explained = explain_disk_error(error, trainer.default_root_dir) or _explain_loss(error)
        if explained is None or explained is error:
            raise
        raise explained from error
    if dist.is_available() and dist.is_initialized():
        # gloo aborts the process when the group is left to the interpreter's exit
        trainer.strategy.barrier()
        dist.destroy_process_group()


def _was_interrupted(error: BaseException) -> bool:
    """Tell whether a Ctrl-C lies behind an error, as in the middle of writing a checkpoint."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def _explain_loss(error: Exception) -> TrainingError | None:
    """Return the end of another process behind the error of a collective, or None."""
    if isinstance(error, RuntimeError) and _LOST_PROCESS.search(str(error)):
        return TrainingError(
            "Another process of the run ended before its time; its own message says why, and none "
            "means that it was killed, as for want of memory. Go on with --resume."
        )
    return None


def _be_quiet() -> None:
    """Leave the console to the reporter."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
