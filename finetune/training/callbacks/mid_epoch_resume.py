"""Where a run stands: what a checkpoint says of it, and how a broken-off epoch goes on.

Lightning goes on in mid-epoch with the right counters but with the epoch's first images, and it
skips the validation of an epoch whose last batch was the last thing saved. A checkpoint therefore
says in terms of its own how many steps of an epoch are done; on loading, Lightning's counters are
set from that, which also holds when the batch is cut into other parts than before.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer

from finetune.training.module import ClassificationModule, EpochSums

POSITION_KEY = "position"
"""Where a checkpoint holds its ``Position``."""


@dataclass(frozen=True, slots=True)
class Position:
    """What a run has behind it.

    Attributes:
        epochs: Finished, with validation.
        steps: Optimizer steps of the epoch that is not finished; 0 between two epochs.
        loss_sums: Of each rank, over its batches of that epoch.
        batches: How many those are, on each rank.
        rates: Learning rate of each layer group at the epoch's last step; empty before it.
    """

    epochs: int
    steps: int
    loss_sums: tuple[float, ...]
    batches: int
    rates: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, as ``weights_only=True`` loads them."""
        return {**asdict(self), "loss_sums": list(self.loss_sums), "rates": dict(self.rates)}

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> "Position":
        """Return what a checkpoint says."""
        tree = checkpoint[POSITION_KEY]
        return cls(**{**tree, "loss_sums": tuple(tree["loss_sums"])})


class ResumableEpoch(Callback):
    """Writes the position into every checkpoint, and goes on from there.

    Every rank must take part in saving: the sums of all go into the file.
    """

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the position."""
        assert isinstance(pl_module, ClassificationModule)
        steps = steps_of_epoch(trainer)
        sums = pl_module.epoch_sums() if steps else EpochSums()
        loss_sums: list[Any] = [sums.loss]
        if trainer.world_size > 1:
            loss_sums = [None] * trainer.world_size
            dist.all_gather_object(loss_sums, sums.loss)
        checkpoint[POSITION_KEY] = Position(
            epochs=trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
            steps=steps,
            loss_sums=tuple(loss_sums),
            batches=sums.batches,
            rates=sums.rates,
        ).as_json()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters, before it reads them, and the module's sums."""
        assert isinstance(pl_module, ClassificationModule)
        position = Position.of(checkpoint)
        if not position.steps:
            return
        done = position.steps * trainer.accumulate_grad_batches
        steps = trainer.datamodule.steps_per_epoch  # type: ignore[attr-defined]
        _set_counters(checkpoint, done=done, is_last=position.steps == steps)
        same = len(position.loss_sums) == trainer.world_size and position.batches == done
        if same:
            loss = position.loss_sums[trainer.global_rank]
        else:  # other parts than before: their mean stands for each
            mean = sum(position.loss_sums) / len(position.loss_sums) / position.batches
            loss = mean * done
        pl_module.resume_epoch(EpochSums(loss, done, position.rates))


def steps_of_epoch(trainer: Trainer) -> int:
    """Return the optimizer steps of the epoch that is under way; 0 between two epochs.

    At the border of a batch and right after loading a checkpoint.
    """
    epochs = trainer.fit_loop.epoch_progress.current
    if epochs.processed == epochs.ready:  # type: ignore[attr-defined]
        return 0
    batches: int = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    return batches // trainer.accumulate_grad_batches


def _set_counters(checkpoint: dict[str, Any], *, done: int, is_last: bool) -> None:
    """Make Lightning go on after ``done`` batches of an epoch, or at its validation."""
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    for counts in (batches["current"], batches["total"]):
        counts.update(ready=done, started=done, processed=done)
        # Lightning takes this for a checkpoint of the end of a batch, or of the end of an epoch
        counts.update(completed=done if is_last else done - 1)
    batches["is_last_batch"] = is_last
    # as in the middle of a validation, which is then done from its beginning; or as before any
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["current"], validation["total"]):
        counts.update(ready=int(is_last), started=int(is_last), processed=0, completed=0)
    validation["is_last_batch"] = False
