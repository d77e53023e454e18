"""Unfreezing by epoch, also under DDP and after a resume."""

import gc
from collections.abc import Iterator
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from finetune.distributed.collectives import check_same_on_all_ranks
from finetune.errors import TrainingError
from finetune.training.module import ClassificationModule
from finetune.training.strategy import BufferAwareDDPStrategy


class UnfreezeScheduler(Callback):
    """Callback that sets the depth of each epoch, and rebuilds the DDP wrapper when it changes.

    At each change and before each checkpoint it compares the weights of all ranks.

    DDP reduces only the parameters that required gradients when it was built: layers that are
    unfrozen later would silently diverge between ranks (Lightning-AI/pytorch-lightning#20340). The
    depth is a pure function of the epoch, so that a resumed run needs no state of this callback.
    """

    def __init__(self) -> None:
        self._ddp_parameter_ids: set[int] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze before the network is wrapped."""
        if stage == "fit":
            _set_depth(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record which parameters the wrapper reduces."""
        self._ddp_parameter_ids = _get_trainable_ids(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the depth of an epoch resumed midway, for which Lightning skips the epoch's hook."""
        self._update_depth(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the depth of the epoch."""
        self._update_depth(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compare the weights of all ranks, so that diverged weights are never saved."""
        if isinstance(trainer.strategy, BufferAwareDDPStrategy):
            check_same_on_all_ranks(_iter_replicated_tensors(trainer.strategy, pl_module))

    def _update_depth(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _set_depth(trainer, pl_module)
        strategy = trainer.strategy
        if not isinstance(strategy, BufferAwareDDPStrategy):
            return
        trainable = _get_trainable_ids(pl_module)
        if trainable != self._ddp_parameter_ids:
            # before the new wrapper broadcasts rank 0's weights, which would hide a divergence
            check_same_on_all_ranks(_iter_replicated_tensors(strategy, pl_module))
            strategy.model = pl_module
            strategy.configure_ddp()
            gc.collect()
            self._ddp_parameter_ids = trainable
        wrapper = strategy.model
        assert isinstance(wrapper, DistributedDataParallel)
        num_reduced = wrapper._get_ddp_logging_data()["num_parameter_tensors"]  # type: ignore[no-untyped-call]
        if num_reduced != len(trainable):
            raise TrainingError(
                f"DDP reduces {num_reduced} parameter tensors, but {len(trainable)} are trainable: "
                f"the ranks would diverge. This is a bug in finetune; please report it."
            )


def _iter_replicated_tensors(
    strategy: BufferAwareDDPStrategy, module: LightningModule
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors that must be equal on all ranks."""
    yield from module.named_parameters()
    if not strategy.broadcast_buffers:
        yield from module.named_buffers()


def _set_depth(trainer: Trainer, pl_module: LightningModule) -> None:
    assert isinstance(pl_module, ClassificationModule)
    pl_module.classifier.set_depth(pl_module.recipe.depth_schedule(trainer.current_epoch))


def _get_trainable_ids(pl_module: LightningModule) -> set[int]:
    return {id(parameter) for parameter in pl_module.parameters() if parameter.requires_grad}
