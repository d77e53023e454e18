"""Callback that saves in mid-epoch, at intervals and before a run stops for a signal.

Lightning saves within the signal handler, at whatever point each rank has reached, and hangs
(Lightning-AI/pytorch-lightning#21406). Here the handler only records the signal; after each step
all ranks agree on the signal, so that they save after the same step.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer

from finetune.distributed import signals
from finetune.distributed.collectives import AsyncMaxReducer
from finetune.distributed.signals import StopRequest
from finetune.training.module import ClassificationModule


class PreemptionCheckpoint(Callback):
    """Mid-epoch saving of ``last.ckpt``: every few minutes, and before a stop for a signal.

    Args:
        path: Path of the checkpoint.
        every_minutes: Interval between saves; None saves at the ends of epochs only.
        timeout: Time limit for another rank.
        clock: Function that returns the present time in seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        every_minutes: float | None,
        timeout: timedelta,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.every_seconds = None if every_minutes is None else 60 * every_minutes
        self.timeout = timeout
        self.clock = clock
        self._last_save_time = clock()
        self._reducer: AsyncMaxReducer | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the reducer by which the ranks agree."""
        if dist.is_initialized():
            self._reducer = AsyncMaxReducer(self.timeout)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the interval, as the previous epoch has just been saved."""
        self._last_save_time = self.clock()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save after a step if a save is due, and stop if any rank received a signal.

        Raises:
            DivergenceError: The loss of a step was not finite on any rank; raised on all of them.
            StopRequest: A rank received a signal.
        """
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        check = pl_module.divergence if isinstance(pl_module, ClassificationModule) else None
        signum, is_due, failed_step = self._reduce_max(
            trainer,
            signals.get_pending_signal(),
            self._is_save_due(trainer),
            0 if check is None else check.failed_step,
        )
        if failed_step and check is not None:
            raise check.build_error(failed_step)
        if signum:
            self._save_and_stop(trainer, signum)
        if is_due:
            trainer.save_checkpoint(self.path)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop if any rank received a signal; the resumed run repeats the validation."""
        signum, _, _ = self._reduce_max(trainer, signals.get_pending_signal(), 0, 0)
        if signum:
            self._save_and_stop(trainer, signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the pending all-reduce."""
        if self._reducer is not None:
            self._reducer.wait()

    def _reduce_max(self, trainer: Trainer, *values: int) -> tuple[int, ...]:
        if self._reducer is None:
            return values
        try:
            return self._reducer.reduce(*values)
        except RuntimeError:
            if trainer.strategy.root_device.type == "cuda":
                # on teardown Lightning moves the weights off the GPU, which waits for the pending
                # collective, and that waits for the lost rank
                trainer.strategy.teardown = lambda: None  # type: ignore[method-assign]
            raise

    def _is_save_due(self, trainer: Trainer) -> bool:
        """Return whether a save is due by the clock of rank 0, and if so restart the interval."""
        if self.every_seconds is None or not trainer.is_global_zero:
            return False
        now = self.clock()
        is_due = now - self._last_save_time >= self.every_seconds
        if is_due:
            self._last_save_time = now
        return is_due

    def _save_and_stop(self, trainer: Trainer, signum: int) -> None:
        if self._reducer is not None:
            self._reducer.wait()
        trainer.save_checkpoint(self.path)
        raise StopRequest(signum)
