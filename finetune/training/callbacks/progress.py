"""Progress bars of epochs, and a hook at the end of each."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from finetune.training.callbacks.mid_epoch_resume import count_steps_in_epoch
from finetune.types import Reporter


class Progress(Callback):
    """Callback that reports one bar per epoch, over training and validation batches, on rank 0."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar of an epoch resumed midway, for which Lightning skips the epoch's hook."""
        if steps := count_steps_in_epoch(trainer):
            self._start_epoch(trainer)
            if trainer.is_global_zero:
                self.reporter.advance(steps * trainer.accumulate_grad_batches)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's bar."""
        self._start_epoch(trainer)

    def _start_epoch(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            total = int(trainer.num_training_batches + sum(trainer.num_val_batches))
            self.reporter.start(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", total)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advance by one batch."""
        if trainer.is_global_zero:
            self.reporter.advance()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance by one batch."""
        if trainer.is_global_zero:
            self.reporter.advance()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the last bar."""
        if trainer.is_global_zero:
            self.reporter.finish()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Finish the bar of the interrupted epoch."""
        if trainer.is_global_zero:
            self.reporter.finish()


class EpochEndHook(Callback):
    """Callback that calls a function at the end of each training epoch, on every rank.

    Args:
        function: Function without arguments.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call the function."""
        self.function()
