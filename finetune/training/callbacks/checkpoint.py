"""Checkpoint and early-stopping callbacks for moved run folders and changed options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from finetune.training.checkpoint_io import (
    BEST_STATE_KEY,
    EARLY_STOPPING_STATE_KEY,
    LAST_STATE_KEY,
    rename_callback_states,
)


class RelocatableCheckpoint(ModelCheckpoint):
    """``ModelCheckpoint`` that keeps its best score when the run folder has been moved.

    Lightning discards it in that case, so that the next epoch, however bad, would replace the best.
    """

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; independent of the class name."""
        return BEST_STATE_KEY if self.monitor is not None else LAST_STATE_KEY

    def set_baseline(self, score: float) -> None:
        """Register the present file with its score: only a better epoch replaces it."""
        file = str(Path(str(self.dirpath)) / f"{self.filename}.ckpt")
        best = torch.tensor(score)
        self.best_k_models = {file: best}
        self.kth_value = self.best_model_score = best
        self.kth_best_model_path = self.best_model_path = file

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with the saved folder in its paths replaced by the present one."""
        old_dir, new_dir = str(state_dict["dirpath"]), str(self.dirpath)
        state = dict(state_dict, dirpath=self.dirpath)
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = state[key].replace(old_dir, new_dir, 1)
        state["best_k_models"] = {
            path.replace(old_dir, new_dir, 1): score
            for path, score in state["best_k_models"].items()
        }
        super().load_state_dict(state)


class ResumableEarlyStopping(EarlyStopping):
    """``EarlyStopping`` that applies the configured patience on resume, not the saved one."""

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; independent of the class name."""
        return EARLY_STOPPING_STATE_KEY

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and the number of epochs without improvement."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def has_stopped_early(checkpoint: Mapping[str, Any], patience: int | None) -> bool:
    """Return whether the patience was already exhausted when a checkpoint was written."""
    states = rename_callback_states(checkpoint.get("callbacks", {}))
    state = states.get(EARLY_STOPPING_STATE_KEY)
    return patience is not None and state is not None and state["wait_count"] >= patience


def build_checkpoint_callback(
    run_dir: Path, name: str, *, monitor: str | None = None, mode: str = "min"
) -> RelocatableCheckpoint:
    """Build the callback that writes ``checkpoints/<name>.ckpt`` in a run folder.

    Args:
        run_dir: The run folder.
        name: Stem of the file name.
        monitor: Metric by which the best epoch is chosen; None keeps the last epoch.
        mode: "min" or "max" of the metric.
    """
    return RelocatableCheckpoint(
        dirpath=run_dir / "checkpoints",
        filename=name,
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        auto_insert_metric_name=False,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
