"""Checkpoint files: atomic writing, reading with verification, keys of callback states."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from finetune.bundle.checkpoint_file import save_checkpoint_file
from finetune.bundle.model_card import CARD_KEY
from finetune.errors import RunFolderError, StorageError
from finetune.system.files import write_file_atomically
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.mid_epoch_resume import RESUME_STATE_KEY, ResumeState

BEST_STATE_KEY = "checkpoint/best"
LAST_STATE_KEY = "checkpoint/last"
EARLY_STOPPING_STATE_KEY = "early_stopping"

PROBE_KEY = "probe"
"""Key of the result of a linear probe in a checkpoint with its head."""


def rename_callback_states(states: Mapping[str, Any]) -> dict[str, Any]:
    """Return callback states with the class-name keys of version 0.1 replaced by explicit ones."""
    renamed = {}
    for key, state in states.items():
        if key.startswith("MovableCheckpoint{"):
            key = BEST_STATE_KEY if state["monitor"] is not None else LAST_STATE_KEY
        elif key.startswith("PatientStopping{"):
            key = EARLY_STOPPING_STATE_KEY
        renamed[key] = state
    return renamed


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin whose writes are atomic: a kill or a full disk keeps the previous file."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write to a temporary file beside the checkpoint, then rename it.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        # given a path instead of a stream, torch.save hides the reason of a failed write
        with write_file_atomically(Path(path)) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return a checkpoint, with callback states of version 0.1 under their present keys."""
        checkpoint: dict[str, Any] = super().load_checkpoint(*args, **kwargs)
        return {**checkpoint, "callbacks": rename_callback_states(checkpoint.get("callbacks", {}))}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint; no pickled code runs, and tensors stay memory-mapped.

    Raises:
        RunFolderError: The file is damaged, or another program wrote it.
        StorageError: The disk cannot read it.
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
            f"{path} was written by another program or an older finetune: it lacks the keys "
            f"{', '.join(sorted(missing))}. Remove it to restart the run from its first epoch."
        )
    return state


def verify_checkpoint(path: Path) -> None:
    """Read a whole checkpoint once and verify the checksums in it.

    Raises:
        RunFolderError: The file has changed since it was written.
        StorageError: The disk cannot read it.
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
        raise _build_corruption_error(path, f"checksum mismatch in {damaged}")


def read_resume_state(run: RunFolder) -> ResumeState | None:
    """Return the progress in the last checkpoint of a run; None without a checkpoint.

    Raises:
        RunFolderError: The checkpoint is damaged.
        StorageError: The disk cannot read it.
    """
    return (
        ResumeState.from_checkpoint(read_checkpoint(run.last_checkpoint_path))
        if run.last_checkpoint_path.is_file()
        else None
    )


def _build_read_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot read {path}: {error.strerror or error}. The file itself may be intact; resume "
        f"with --resume once the disk responds again."
    )


def _build_corruption_error(path: Path, reason: str) -> RunFolderError:
    return RunFolderError(
        f"{path} is damaged ({reason}). Restore it from a backup, or remove it to restart the run "
        f"from its first epoch."
    )


def save_probe(
    module: nn.Module,
    card: Mapping[str, Any],
    result: Mapping[str, Any],
    file: Path,
    *,
    head_temperature: float = 1.0,
) -> None:
    """Write a network with the fitted head of a linear probe as a checkpoint.

    Args:
        module: Module with the network.
        card: Model card, as JSON values.
        result: Result of the probe, as JSON values; stored under ``PROBE_KEY``.
        file: File to write.
        head_temperature: Divisor of the head's weight and bias since the probe was fitted.

    Raises:
        StorageError: The disk is full or fails.
    """
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    probe = {**result, "head_temperature": head_temperature}
    checkpoint = {"state_dict": state, CARD_KEY: card, PROBE_KEY: probe}
    save_checkpoint_file(checkpoint, file)
