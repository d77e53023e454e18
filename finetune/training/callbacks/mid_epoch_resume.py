"""Where a run stands: what a checkpoint says of it, and how a broken-off epoch goes on.

Lightning goes on in mid-epoch with the right counters but with the epoch's first images, and it
skips the validation of an epoch whose last batch was the last thing saved. A checkpoint therefore
says in terms of its own how many steps of an epoch are done; on loading, Lightning's counters are
set from that, which also holds when the batch is cut into other parts than before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer

from finetune.training.module import ClassificationModule, EpochSums

RESUME_STATE_KEY = "position"
"""Where a checkpoint holds its ``ResumeState``."""


@dataclass(frozen=True, slots=True)
class ResumeState:
    """What a run has behind it.

    Attributes:
        completed_epochs: Finished, with validation.
        steps_in_epoch: Optimizer steps of the epoch that is not finished; 0 between two epochs.
        loss_sums: Of each rank, over its batches of that epoch.
        num_batches: How many those are, on each rank.
        learning_rates: Learning rate of each layer group at the epoch's last step; empty before it.
    """

    completed_epochs: int
    steps_in_epoch: int
    loss_sums: tuple[float, ...]
    num_batches: int
    learning_rates: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``weights_only=True`` loads them."""
        return {
            "epochs": self.completed_epochs,
            "steps": self.steps_in_epoch,
            "loss_sums": list(self.loss_sums),
            "batches": self.num_batches,
            "rates": dict(self.learning_rates),
        }

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> "ResumeState":
        """Return what a checkpoint says."""
        tree = checkpoint[RESUME_STATE_KEY]
        return cls(
            completed_epochs=tree["epochs"],
            steps_in_epoch=tree["steps"],
            loss_sums=tuple(tree["loss_sums"]),
            num_batches=tree["batches"],
            learning_rates=tree["rates"],
        )


class MidEpochResume(Callback):
    """Writes the position into every checkpoint, and goes on from there.

    Every rank must take part in saving: the sums of all go into the file.
    """

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the position."""
        assert isinstance(pl_module, ClassificationModule)
        steps = count_steps_in_epoch(trainer)
        sums = pl_module.get_epoch_sums() if steps else EpochSums()
        loss_sums: list[Any] = [sums.loss_sum]
        if trainer.world_size > 1:
            loss_sums = [None] * trainer.world_size
            dist.all_gather_object(loss_sums, sums.loss_sum)
        checkpoint[RESUME_STATE_KEY] = ResumeState(
            completed_epochs=trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
            steps_in_epoch=steps,
            loss_sums=tuple(loss_sums),
            num_batches=sums.num_batches,
            learning_rates=sums.learning_rates,
        ).to_json()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters, before it reads them, and the module's sums."""
        assert isinstance(pl_module, ClassificationModule)
        position = ResumeState.from_checkpoint(checkpoint)
        if not position.steps_in_epoch:
            return
        done = position.steps_in_epoch * trainer.accumulate_grad_batches
        steps = trainer.datamodule.steps_per_epoch  # type: ignore[attr-defined]
        _set_loop_counters(checkpoint, num_batches=done, is_last=position.steps_in_epoch == steps)
        same = len(position.loss_sums) == trainer.world_size and position.num_batches == done
        if same:
            loss = position.loss_sums[trainer.global_rank]
        else:  # other parts than before: their mean stands for each
            mean = sum(position.loss_sums) / len(position.loss_sums) / position.num_batches
            loss = mean * done
        pl_module.resume_epoch(EpochSums(loss, done, position.learning_rates))


def count_steps_in_epoch(trainer: Trainer) -> int:
    """Return the optimizer steps of the epoch that is under way; 0 between two epochs.

    At the border of a batch and right after loading a checkpoint.
    """
    epochs = trainer.fit_loop.epoch_progress.current
    if epochs.processed == epochs.ready:  # type: ignore[attr-defined]
        return 0
    batches: int = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    return batches // trainer.accumulate_grad_batches


def _set_loop_counters(checkpoint: dict[str, Any], *, num_batches: int, is_last: bool) -> None:
    """Make Lightning go on after ``num_batches`` batches of an epoch, or at its validation."""
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    for counts in (batches["current"], batches["total"]):
        counts.update(ready=num_batches, started=num_batches, processed=num_batches)
        # Lightning takes this for a checkpoint of the end of a batch, or of the end of an epoch
        counts.update(completed=num_batches if is_last else num_batches - 1)
    batches["is_last_batch"] = is_last
    # as in the middle of a validation, which is then done from its beginning; or as before any
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["current"], validation["total"]):
        counts.update(ready=int(is_last), started=int(is_last), processed=0, completed=0)
    validation["is_last_batch"] = False
