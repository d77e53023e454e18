"""Checkpoint callbacks that survive a moved run folder and start from a baseline."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from finetune.training.checkpoint_io import BEST_STATE_KEY, LAST_STATE_KEY


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
