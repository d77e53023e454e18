"""Checkpoints that are whole, that move with their folder, and what early stopping remembers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from finetune.bundle.model_card import CARD_KEY
from finetune.errors import RunFolderError, StorageError
from finetune.system.files import write_file_atomically
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.mid_epoch_resume import RESUME_STATE_KEY, ResumeState

BEST_STATE_KEY = "checkpoint/best"
LAST_STATE_KEY = "checkpoint/last"
EARLY_STOPPING_STATE_KEY = "early_stopping"


def rename_callback_states(states: Mapping[str, Any]) -> dict[str, Any]:
    """Return callback states with the keys of version 0.1, which held class names, renamed."""
    renamed = {}
    for key, state in states.items():
        if key.startswith("MovableCheckpoint{"):
            key = BEST_STATE_KEY if state["monitor"] is not None else LAST_STATE_KEY
        elif key.startswith("PatientStopping{"):
            key = EARLY_STOPPING_STATE_KEY
        renamed[key] = state
    return renamed


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all; a kill or a full disk leaves the one before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside the file and move it there.

        Raises:
            StorageError: The disk is full, read-only or fails.
        """
        # given a path, torch.save hides the reason of a failed write
        with write_file_atomically(Path(path)) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return a checkpoint, with the callback states of version 0.1 under their present keys."""
        checkpoint: dict[str, Any] = super().load_checkpoint(*args, **kwargs)
        return {**checkpoint, "callbacks": rename_callback_states(checkpoint.get("callbacks", {}))}


class RelocatableCheckpoint(ModelCheckpoint):
    """Knows the best score of before in a run folder that was moved, too.

    Lightning forgets it there, and the next epoch, however bad, would replace the best.
    """

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; independent of the class name."""
        return BEST_STATE_KEY if self.monitor is not None else LAST_STATE_KEY

    def set_baseline(self, score: float) -> None:
        """Let an epoch be kept only if it is better than what lies at the file's place by now."""
        file = str(Path(str(self.dirpath)) / f"{self.filename}.ckpt")
        best = torch.tensor(score)
        self.best_k_models = {file: best}
        self.kth_value = self.best_model_score = best
        self.kth_best_model_path = self.best_model_path = file

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was saved, with the paths of today."""
        before, now = str(state_dict["dirpath"]), str(self.dirpath)
        state = dict(state_dict, dirpath=self.dirpath)
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = state[key].replace(before, now, 1)
        state["best_k_models"] = {
            path.replace(before, now, 1): score for path, score in state["best_k_models"].items()
        }
        super().load_state_dict(state)


class ResumableEarlyStopping(EarlyStopping):
    """Takes its patience from the options of today; Lightning would restore that of before."""

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; independent of the class name."""
        return EARLY_STOPPING_STATE_KEY

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was counted."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def has_stopped_early(checkpoint: Mapping[str, Any], patience: int | None) -> bool:
    """Tell whether a run had already waited long enough when a checkpoint was written."""
    states = rename_callback_states(checkpoint.get("callbacks", {}))
    state = states.get(EARLY_STOPPING_STATE_KEY)
    return patience is not None and state is not None and state["wait_count"] >= patience


def build_checkpoint_callback(
    run_dir: Path, name: str, *, monitor: str | None = None, mode: str = "min"
) -> RelocatableCheckpoint:
    """Return the callback that keeps ``checkpoints/<name>.ckpt`` in a run folder.

    Args:
        run_dir: The run folder.
        name: Of the file.
        monitor: Metric of the best epoch; None keeps the last epoch.
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, without running anything of it; tensors stay on disk.

    Raises:
        RunFolderError: It is damaged, or was written by another program.
        StorageError: The disk does not give it.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        missing = {CARD_KEY, RESUME_STATE_KEY} - state.keys()
    except OSError as error:
        raise _build_read_error(path, error) from error
    except Exception as error:
        raise _build_corruption_error(path, type(error).__name__) from error
    if missing:
        raise RunFolderError(
            f"{path} was written by another program, or an older finetune: it lacks "
            f"{', '.join(sorted(missing))}. Remove it to start the run's first epoch again."
        )
    return state


def verify_checkpoint(path: Path) -> None:
    """Read a whole checkpoint once and compare the checksums in it.

    Raises:
        RunFolderError: It has changed since it was written.
        StorageError: The disk does not give it.
    """
    read_checkpoint(path)
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise _build_read_error(path, error) from error
    except BadZipFile as error:
        raise _build_corruption_error(path, str(error)) from error
    if damaged is not None:
        raise _build_corruption_error(path, f"{damaged} does not fit its checksum")


def read_resume_state(run: RunFolder) -> ResumeState | None:
    """Return what the last checkpoint of a run has behind it; None without one.

    Raises:
        RunFolderError: It is damaged.
    """
    return (
        ResumeState.from_checkpoint(read_checkpoint(run.last_checkpoint_path))
        if run.last_checkpoint_path.is_file()
        else None
    )


def _build_read_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot read {path}: {error.strerror or error}. It may well be whole; go on with --resume "
        f"when the disk answers again."
    )


def _build_corruption_error(path: Path, reason: str) -> RunFolderError:
    return RunFolderError(
        f"{path} is damaged ({reason}). Remove it to start the run's first epoch again, or put a copy "
        f"in its place."
    )
