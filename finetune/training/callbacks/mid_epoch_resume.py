"""Progress of a run in its checkpoints, and the resume of an epoch that was interrupted midway.

Lightning resumes midway with the right counters but with the epoch's first images, and it skips the
validation of an epoch if the checkpoint was written after its last batch. A checkpoint therefore
stores the completed steps of the epoch in a state of its own; on loading, Lightning's counters are
set from it, which is also correct if the batch is divided into other micro-batches than before.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer

from finetune.training.curves.epoch_sums import EpochSums
from finetune.training.module import ClassificationModule

RESUME_STATE_KEY = "position"
"""Checkpoint key of the ``ResumeState``."""


@dataclass(frozen=True, slots=True)
class ResumeState:
    """Progress of a run.

    Attributes:
        completed_epochs: Number of completed epochs, with their validation.
        steps_in_epoch: Optimizer steps of the unfinished epoch; 0 between two epochs.
        loss_sums: Sum of the losses of each rank, over its batches of the unfinished epoch.
        num_batches: Number of those batches on each rank.
        learning_rates: Learning rate of each layer group at the epoch's last step; empty before it.
        grad_norm_sums: Sum of the gradient norms of each layer group in the unfinished epoch, the
            same on all ranks; empty if an older release wrote the checkpoint.
        grad_norm_counts: Number of steps in each of these sums.
    """

    completed_epochs: int
    steps_in_epoch: int
    loss_sums: tuple[float, ...]
    num_batches: int
    learning_rates: Mapping[str, float]
    grad_norm_sums: tuple[float, ...] = ()
    grad_norm_counts: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, which ``weights_only=True`` can load."""
        return {
            "epochs": self.completed_epochs,
            "steps": self.steps_in_epoch,
            "loss_sums": list(self.loss_sums),
            "batches": self.num_batches,
            "rates": dict(self.learning_rates),
            "grad_norm_sums": list(self.grad_norm_sums),
            "grad_norm_counts": list(self.grad_norm_counts),
        }

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> "ResumeState":
        """Return the state that a checkpoint holds."""
        tree = checkpoint[RESUME_STATE_KEY]
        return cls(
            completed_epochs=tree["epochs"],
            steps_in_epoch=tree["steps"],
            loss_sums=tuple(tree["loss_sums"]),
            num_batches=tree["batches"],
            learning_rates=tree["rates"],
            grad_norm_sums=tuple(tree.get("grad_norm_sums", ())),
            grad_norm_counts=tuple(tree.get("grad_norm_counts", ())),
        )


class MidEpochResume(Callback):
    """Callback that stores the progress in every checkpoint and restores Lightning's counters.

    Every rank must take part in saving, since the sums of all ranks are stored.
    """

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the progress to a checkpoint, unless the last step has diverged.

        Raises:
            DivergenceError: The loss or the gradients of a step are not finite; on all ranks.
        """
        assert isinstance(pl_module, ClassificationModule)
        if pl_module.divergence is not None:
            pl_module.divergence.wait()
        steps = count_steps_in_epoch(trainer)
        sums = pl_module.get_epoch_sums() if steps else EpochSums()
        loss_sums: list[Any] = [sums.loss_sum]
        if trainer.world_size > 1:
            loss_sums = [None] * trainer.world_size
            dist.all_gather_object(loss_sums, sums.loss_sum)
        if pl_module.divergence is not None and not all(map(math.isfinite, loss_sums)):
            raise pl_module.divergence.build_error()
        checkpoint[RESUME_STATE_KEY] = ResumeState(
            completed_epochs=trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
            steps_in_epoch=steps,
            loss_sums=tuple(loss_sums),
            num_batches=sums.num_batches,
            learning_rates=sums.learning_rates,
            grad_norm_sums=tuple(sums.grad_norm_sums),
            grad_norm_counts=tuple(sums.grad_norm_counts),
        ).to_json()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters, before Lightning reads them, and the module's sums."""
        assert isinstance(pl_module, ClassificationModule)
        state = ResumeState.from_checkpoint(checkpoint)
        if not state.steps_in_epoch:
            return
        num_batches = state.steps_in_epoch * trainer.accumulate_grad_batches
        steps_per_epoch = trainer.datamodule.steps_per_epoch  # type: ignore[attr-defined]
        is_last = state.steps_in_epoch == steps_per_epoch
        _set_loop_counters(checkpoint, num_batches=num_batches, is_last=is_last)
        has_same_ranks = len(state.loss_sums) == trainer.world_size
        if has_same_ranks and state.num_batches == num_batches:
            loss = state.loss_sums[trainer.global_rank]
        else:  # other ranks or micro-batches than before: each takes the mean of all
            mean = sum(state.loss_sums) / len(state.loss_sums) / state.num_batches
            loss = mean * num_batches
        pl_module.resume_epoch(
            EpochSums(
                loss,
                num_batches,
                state.learning_rates,
                state.grad_norm_sums,
                state.grad_norm_counts,
            )
        )


def count_steps_in_epoch(trainer: Trainer) -> int:
    """Return the completed optimizer steps of the unfinished epoch; 0 between two epochs.

    Valid between two batches, and right after a checkpoint has been loaded.
    """
    epochs = trainer.fit_loop.epoch_progress.current
    if epochs.processed == epochs.ready:  # type: ignore[attr-defined]
        return 0
    batches: int = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    return batches // trainer.accumulate_grad_batches


def _set_loop_counters(checkpoint: dict[str, Any], *, num_batches: int, is_last: bool) -> None:
    """Let Lightning resume after ``num_batches`` batches of an epoch, or at its validation."""
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    for counts in (batches["current"], batches["total"]):
        counts.update(ready=num_batches, started=num_batches, processed=num_batches)
        # by this Lightning tells a checkpoint of the end of an epoch from one within it
        counts.update(completed=num_batches if is_last else num_batches - 1)
    batches["is_last_batch"] = is_last
    # as within a validation, which is then repeated from its beginning; or as before any validation
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["current"], validation["total"]):
        counts.update(ready=int(is_last), started=int(is_last), processed=0, completed=0)
    validation["is_last_batch"] = False
