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
from finetune.system.files import atomic_file
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.mid_epoch_resume import POSITION_KEY, Position


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all; a kill or a full disk leaves the one before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside the file and move it there.

        Raises:
            StorageError: The disk is full, read-only or fails.
        """
        # given a path, torch.save hides the reason of a failed write
        with atomic_file(Path(path)) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)


class MovableCheckpoint(ModelCheckpoint):
    """Knows the best score of before in a run folder that was moved, too.

    Lightning forgets it there, and the next epoch, however bad, would replace the best.
    """

    def begin_with(self, score: float) -> None:
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


class PatientStopping(EarlyStopping):
    """Takes its patience from the options of today; Lightning would restore that of before."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was counted."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def stopped_early(checkpoint: Mapping[str, Any], patience: int | None) -> bool:
    """Tell whether a run had already waited long enough when a checkpoint was written."""
    states = checkpoint.get("callbacks", {})
    waits = [s["wait_count"] for key, s in states.items() if key.startswith("PatientStopping")]
    return patience is not None and any(wait >= patience for wait in waits)


def keep_checkpoint(
    folder: Path, name: str, *, monitor: str | None = None, mode: str = "min"
) -> MovableCheckpoint:
    """Return the callback that keeps ``checkpoints/<name>.ckpt`` in a run folder.

    Args:
        folder: The run folder.
        name: Of the file.
        monitor: Metric of the best epoch; None keeps the last epoch.
        mode: "min" or "max" of the metric.
    """
    return MovableCheckpoint(
        dirpath=folder / "checkpoints",
        filename=name,
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        auto_insert_metric_name=False,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, without running anything of it; tensors stay on disk.

    Raises:
        RunFolderError: It is damaged, or was written by another program.
        StorageError: The disk does not give it.
    """
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        missing = {CARD_KEY, POSITION_KEY} - state.keys()
    except OSError as error:
        raise _unreadable(file, error) from error
    except Exception as error:
        raise _damaged(file, type(error).__name__) from error
    if missing:
        raise RunFolderError(
            f"{file} was written by another program, or an older finetune: it lacks "
            f"{', '.join(sorted(missing))}. Remove it to start the run's first epoch again."
        )
    return state


def require_undamaged(file: Path) -> None:
    """Read a whole checkpoint once and compare the checksums in it.

    Raises:
        RunFolderError: It has changed since it was written.
        StorageError: The disk does not give it.
    """
    read_checkpoint(file)
    try:
        with ZipFile(file) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise _unreadable(file, error) from error
    except BadZipFile as error:
        raise _damaged(file, str(error)) from error
    if damaged is not None:
        raise _damaged(file, f"{damaged} does not fit its checksum")


def stored_position(run: RunFolder) -> Position | None:
    """Return what the last checkpoint of a run has behind it; None without one.

    Raises:
        RunFolderError: It is damaged.
    """
    return Position.of(read_checkpoint(run.last)) if run.last.is_file() else None


def _unreadable(file: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot read {file}: {error.strerror or error}. It may well be whole; go on with --resume "
        f"when the disk answers again."
    )


def _damaged(file: Path, how: str) -> RunFolderError:
    return RunFolderError(
        f"{file} is damaged ({how}). Remove it to start the run's first epoch again, or put a copy "
        f"in its place."
    )
