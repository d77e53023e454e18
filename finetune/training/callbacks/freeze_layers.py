"""What happens at the borders of epochs: freezing that holds under DDP and resume, and progress."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from finetune.distributed.checksum import check_same_on_all_ranks
from finetune.errors import TrainingError
from finetune.training.callbacks.mid_epoch_resume import count_steps_in_epoch
from finetune.training.module import ClassificationModule
from finetune.training.strategy import BufferAwareDDPStrategy
from finetune.types import Reporter


class UnfreezeScheduler(Callback):
    """Sets the depth of each epoch, and rebuilds the DDP wrapper when it changes.

    At each change and before each checkpoint it compares the weights of all ranks.

    DDP reduces the parameters that required gradients when it was built, and no others: layers that
    thaw later would drift apart in silence (Lightning-AI/pytorch-lightning#20340). The depth is a
    pure function of the epoch, so that a resumed run needs no state of this callback.
    """

    def __init__(self) -> None:
        self._ddp_parameter_ids: set[int] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze before the network is wrapped."""
        if stage == "fit":
            _set_depth(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the wrapper reduces."""
        self._ddp_parameter_ids = _get_trainable_ids(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the depth of a resumed epoch, for which the epoch's own hook is passed over."""
        self._update_depth(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the depth of the epoch."""
        self._update_depth(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compare the weights of all ranks: what has drifted must not be saved."""
        if isinstance(trainer.strategy, BufferAwareDDPStrategy):
            check_same_on_all_ranks(_iter_replicated_tensors(trainer.strategy, pl_module))

    def _update_depth(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _set_depth(trainer, pl_module)
        strategy = trainer.strategy
        if not isinstance(strategy, BufferAwareDDPStrategy):
            return
        trainable = _get_trainable_ids(pl_module)
        if trainable != self._ddp_parameter_ids:
            # before the new wrapper would make them alike, and hide it
            check_same_on_all_ranks(_iter_replicated_tensors(strategy, pl_module))
            strategy.model = pl_module
            strategy.configure_ddp()
            gc.collect()
            self._ddp_parameter_ids = trainable
        wrapper = strategy.model
        assert isinstance(wrapper, DistributedDataParallel)
        reduced = wrapper._get_ddp_logging_data()["num_parameter_tensors"]  # type: ignore[no-untyped-call]
        if reduced != len(trainable):
            raise TrainingError(
                f"DDP reduces {reduced} tensors, but {len(trainable)} train: the processes would "
                f"drift apart. This is a defect of finetune; please report it."
            )


def _iter_replicated_tensors(
    strategy: BufferAwareDDPStrategy, module: LightningModule
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors that must not differ between ranks."""
    yield from module.named_parameters()
    if not strategy.broadcast_buffers:
        yield from module.named_buffers()


class NetworkCompiler(Callback):
    """Compiles the network for training batches, and says why where that fails.

    It stands behind ``UnfreezeScheduler``: each depth and image size is compiled anew, since torch gives up
    after a few recompilations, and would do so in the middle of a step.

    Args:
        reporter: Told of it.
        batch_size: Images of a batch in this process.
        size_schedule: Epoch to height and width of its training images.
    """

    def __init__(
        self,
        reporter: Reporter,
        *,
        batch_size: int,
        size_schedule: Callable[[int], tuple[int, int]],
    ) -> None:
        self.reporter = reporter
        self.batch_size = batch_size
        self.size_schedule = size_schedule
        self._compiled_signature: tuple[int, tuple[int, int]] | None = None
        self._has_failed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile for a resumed epoch, for which the epoch's own hook is passed over."""
        self._compile(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile on the device that the network lies on by now."""
        self._compile(trainer, pl_module)

    def _compile(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ClassificationModule)
        classifier = pl_module.classifier
        size = self.size_schedule(trainer.current_epoch)
        if self._has_failed or self._compiled_signature == (classifier.depth, size):
            return
        self._compiled_signature = classifier.depth, size
        torch.compiler.reset()
        self.reporter.start("compiling the network", 1)
        shape = (self.batch_size, pl_module.spec.input_size[0], *size)
        example = torch.zeros(shape, device=pl_module.device)
        example = example.contiguous(memory_format=torch.channels_last)
        classifier.train()
        with trainer.precision_plugin.forward_context():
            reason = classifier.compile_for_training(example)
        self.reporter.finish()
        self._has_failed = reason is not None
        if reason is not None:
            self.reporter.note(f"trainer.compile fails, and training goes on without it: {reason}")


class WeightAveraging(Callback):
    """Takes the weights into the module's average after each step, before anything is saved."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the module to its device, with what a checkpoint gave."""
        assert isinstance(pl_module, ClassificationModule)
        if pl_module.average is not None:
            pl_module.average.move_to_module()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take in the weights, if the batch ended a step."""
        assert isinstance(pl_module, ClassificationModule)
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if pl_module.average is not None and is_step:
            pl_module.average.update(trainer.global_step)


class Progress(Callback):
    """Tells a reporter about batches and finished epochs, on rank 0."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of an epoch that broke off, for which its own hook is passed over."""
        if steps := count_steps_in_epoch(trainer):
            self._start_epoch(trainer)
            if trainer.is_global_zero:
                self.reporter.advance(steps * trainer.accumulate_grad_batches)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the epoch's bar."""
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
        """Go on by a batch."""
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
        """Go on by a batch."""
        if trainer.is_global_zero:
            self.reporter.advance()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the last bar."""
        if trainer.is_global_zero:
            self.reporter.finish()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End the bar of the epoch that broke off."""
        if trainer.is_global_zero:
            self.reporter.finish()


def _set_depth(trainer: Trainer, pl_module: LightningModule) -> None:
    assert isinstance(pl_module, ClassificationModule)
    pl_module.classifier.set_depth(pl_module.recipe.depth_schedule(trainer.current_epoch))


def _get_trainable_ids(pl_module: LightningModule) -> set[int]:
    return {id(parameter) for parameter in pl_module.parameters() if parameter.requires_grad}
