"""Compilation of the network with ``torch.compile`` for each depth and image size."""

from collections.abc import Callable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from finetune.training.module import ClassificationModule
from finetune.types import Reporter


class NetworkCompiler(Callback):
    """Callback that compiles the network for training batches, or notes why that failed.

    It must follow ``UnfreezeScheduler`` in the list of callbacks. The network is recompiled for
    each depth and image size: torch gives up after a few recompilations of its own, and would do so
    in the middle of a step.

    Args:
        reporter: Receives the progress, and the reason of a failure.
        batch_size: Images of a batch in this process.
        size_schedule: Function from epoch to height and width of the training images.
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
        """Compile for an epoch resumed midway, for which Lightning skips the epoch's hook."""
        self._compile(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile on the device to which the network has been moved by now."""
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
            self.reporter.note(f"trainer.compile=true failed, training uncompiled: {reason}")
