"""Early stopping that counts from the kept model, and the record of why a run stopped."""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from finetune.training.callbacks.mid_epoch_resume import ResumeState
from finetune.training.checkpoint_io import (
    BEST_STATE_KEY,
    EARLY_STOPPING_STATE_KEY,
    rename_callback_states,
)
from finetune.units import format_count, format_percent


class ResumableEarlyStopping(EarlyStopping):
    """``EarlyStopping`` that applies the configured patience on resume, not the saved one.

    Without a patience it counts, too, so that a resumed run with one has the best score so far.

    Args:
        monitor: Validation metric that is watched.
        patience: Epochs that are not better than the best one before training stops; None never
            stops it.
        mode: "min" or "max" of the metric.
    """

    def __init__(self, monitor: str, *, patience: int | None, mode: str) -> None:
        super().__init__(
            monitor,
            patience=sys.maxsize if patience is None else patience,
            mode=mode,
            check_finite=patience is not None,
            check_on_train_epoch_end=True,
        )

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; independent of the class name."""
        return EARLY_STOPPING_STATE_KEY

    def set_baseline(self, score: float) -> None:
        """Register the score of the model that is kept so far: only a better epoch improves."""
        self.best_score = torch.tensor(score)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the score of the best model from a checkpoint without a state of this callback.

        Older releases wrote such checkpoints where early stopping was off. How many epochs the best
        model is ago is not in them: they are counted from here on.
        """
        states = checkpoint["callbacks"]
        best = states.get(BEST_STATE_KEY, {})
        score = best.get("best_model_score")
        is_same = best.get("monitor") == self.monitor
        if self.state_key not in states and is_same and score is not None:
            self.set_baseline(float(score))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and the number of epochs without improvement.

        Not why training had stopped: it continues.
        """
        going_on = {
            "patience": self.patience,
            "stopping_reason": EarlyStoppingReason.NOT_STOPPED.value,
            "stopping_reason_message": None,
        }
        super().load_state_dict({**state_dict, **going_on})


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """Time and reason of a stop before the last epoch.

    Attributes:
        epoch: Number of completed epochs.
        num_epochs: Number of epochs of the run.
        monitor: Validation metric that did not improve, such as ``val/accuracy``.
        reason: "no_improvement", or "not_finite" if the metric became NaN or infinite.
        num_epochs_without_improvement: Number of last epochs that were not better than the best.
        best_epoch: Epoch with the best value, counted from 1; 0 is the linear probe. None if there
            is neither a probe nor an epoch with a finite value.
        best_score: Best value of the metric; None as before.
    """

    epoch: int
    num_epochs: int
    monitor: str
    reason: Literal["no_improvement", "not_finite"]
    num_epochs_without_improvement: int
    best_epoch: int | None
    best_score: float | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def describe(self) -> str:
        """Return a sentence on when and why the run stopped."""
        if self.reason == "not_finite":
            why = f"{self.monitor} is not finite"
        else:
            epochs = format_count(self.num_epochs_without_improvement, "epoch")
            why = f"no better {self.monitor} for {epochs}"
        return (
            f"Stopped after epoch {self.epoch} of {self.num_epochs}: {why}{self._describe_best()}."
        )

    def _describe_best(self) -> str:
        """Return the best value and its epoch, in brackets; "" if there is none."""
        if self.best_score is None:
            return ""
        is_loss = self.monitor.endswith("loss")
        score = f"{self.best_score:.4f}" if is_loss else format_percent(self.best_score)
        return (
            f" (best: {score}, {f'epoch {self.best_epoch}' if self.best_epoch else 'linear probe'})"
        )


def find_early_stop(
    checkpoint: Mapping[str, Any], *, patience: int | None, num_epochs: int, monitor: str
) -> EarlyStop | None:
    """Return why training had stopped when a checkpoint was written; None if it had not.

    Args:
        checkpoint: Content of a run's last checkpoint.
        patience: Epochs without improvement before early stopping; None never stops early.
        num_epochs: Number of epochs of the run.
        monitor: Validation metric that early stopping watches.
    """
    state = rename_callback_states(checkpoint.get("callbacks", {})).get(EARLY_STOPPING_STATE_KEY)
    epoch = ResumeState.from_checkpoint(checkpoint).completed_epochs
    if patience is None or state is None or epoch >= num_epochs:
        return None
    is_finite = state.get("stopping_reason") != EarlyStoppingReason.NON_FINITE_METRIC.value
    if is_finite and state["wait_count"] < patience:
        return None
    # an epoch whose metric is not finite is not counted
    num_waited = int(state["wait_count"]) + (0 if is_finite else 1)
    best_score = float(state["best_score"])
    has_best = math.isfinite(best_score)
    return EarlyStop(
        epoch=epoch,
        num_epochs=num_epochs,
        monitor=monitor,
        reason="no_improvement" if is_finite else "not_finite",
        num_epochs_without_improvement=num_waited,
        best_epoch=epoch - num_waited if has_best else None,
        best_score=best_score if has_best else None,
    )
