"""Stops at the border of a batch with everything saved, and saves every few minutes.

Lightning saves inside the signal's handler, wherever each rank happens to be, and hangs
(Lightning-AI/pytorch-lightning#21406). Here a handler notes the signal and nothing more; after
each step all ranks agree on what came, and save at the same one.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer

from finetune.distributed import signals
from finetune.distributed.signals import StopRequest


class AsyncMaxReducer:
    """The largest of the ranks' wishes, without waiting for it: that of the step before.

    The wishes travel while the next step is computed, by gloo also where gradients go by NCCL,
    which would make the GPU wait.

    Args:
        timeout: When to give up on a rank.
    """

    def __init__(self, timeout: timedelta) -> None:
        group = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(group, dist.ProcessGroup), "every rank belongs to it"
        self._group = group
        self._pending: tuple[Any, torch.Tensor] | None = None

    def reduce(self, *values: int) -> tuple[int, ...]:
        """Return what the last call of all ranks came to; every rank calls equally often."""
        agreed = self.wait() or (0,) * len(values)
        tensor = torch.tensor(values)
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, self._group, async_op=True)
        self._pending = work, tensor
        return agreed

    def wait(self) -> tuple[int, ...] | None:
        """Return what is still on its way, or None."""
        if self._pending is None:
            return None
        work, tensor = self._pending
        self._pending = None
        work.wait()
        return tuple(tensor.tolist())


class PreemptionCheckpoint(Callback):
    """Saves ``last.ckpt`` in mid-epoch: every few minutes, and before it stops for a signal.

    Args:
        path: The checkpoint.
        every_minutes: From one save to the next; None saves at the end of epochs alone.
        timeout: When to give up on another rank.
        clock: Seconds.
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
        """Open the way by which ranks agree."""
        if dist.is_initialized():
            self._reducer = AsyncMaxReducer(self.timeout)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the minutes from the checkpoint of the epoch before."""
        self._last_save_time = self.clock()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save after a step, if it is time, and stop if that was asked for."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        signum, is_due = self._reduce_max(
            trainer, signals.get_pending_signal(), self._is_save_due(trainer)
        )
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
        """Stop if that was asked for; the validation is done anew when the run goes on."""
        signum, _ = self._reduce_max(trainer, signals.get_pending_signal(), 0)
        if signum:
            self._save_and_stop(trainer, signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave nothing on its way."""
        if self._reducer is not None:
            self._reducer.wait()

    def _reduce_max(self, trainer: Trainer, *values: int) -> tuple[int, ...]:
        if self._reducer is None:
            return values
        try:
            return self._reducer.reduce(*values)
        except RuntimeError:
            if trainer.strategy.root_device.type == "cuda":
                # to free the GPU Lightning copies the weights from it, behind a collective that
                # waits for the rank that is gone
                trainer.strategy.teardown = lambda: None  # type: ignore[method-assign]
            raise

    def _is_save_due(self, trainer: Trainer) -> bool:
        """Tell once whether it is time, by the clock of rank 0."""
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
