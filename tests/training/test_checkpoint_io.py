"""Atomic writing, read errors and verification of checkpoints."""

import errno
import resource
import signal
from pathlib import Path

import pytest
import torch

from finetune.errors import RunFolderError, StorageError
from finetune.training.checkpoint_io import (
    BEST_STATE_KEY,
    EARLY_STOPPING_STATE_KEY,
    LAST_STATE_KEY,
    AtomicCheckpointIO,
    read_checkpoint,
    rename_callback_states,
    verify_checkpoint,
)
from tests.support.helpers import mount_tiny_disk


class Unpicklable:
    """Object that cannot be saved."""

    def __reduce__(self) -> str:
        raise RuntimeError("unpicklable")


def find_errno(error: BaseException | None) -> int | None:
    """Return the error number of the first ``OSError`` that led to an error."""
    while error is not None:
        error = error.__cause__ or error.__context__
        if isinstance(error, OSError):
            return error.errno
    return None


def test_save_checkpoint_failure_keeps_previous_file_only(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    checkpoint_io = AtomicCheckpointIO()
    checkpoint_io.save_checkpoint({"epoch": 1}, file)
    with pytest.raises(RuntimeError, match="unpicklable"):
        checkpoint_io.save_checkpoint({"epoch": 2, "object": Unpicklable()}, file)
    assert torch.load(file, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_save_checkpoint_full_disk_keeps_previous_file_and_raises_storage_error(
    tmp_path: Path,
) -> None:
    with mount_tiny_disk(tmp_path / "disk", size="1m") as disk:
        checkpoint_io = AtomicCheckpointIO()
        checkpoint_io.save_checkpoint({"epoch": 1}, disk / "last.ckpt")
        with pytest.raises(StorageError, match=r"last\.ckpt") as raised:
            checkpoint_io.save_checkpoint({"weights": torch.zeros(10**6)}, disk / "last.ckpt")
        assert find_errno(raised.value) == errno.ENOSPC
        assert torch.load(disk / "last.ckpt", weights_only=True) == {"epoch": 1}
        assert [file.name for file in disk.iterdir()] == ["last.ckpt"]


def test_save_checkpoint_file_size_limit_raises_storage_error(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"last\.ckpt") as raised:
            AtomicCheckpointIO().save_checkpoint(
                {"weights": torch.zeros(10**6)}, tmp_path / "last.ckpt"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert find_errno(raised.value) == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "error_class", "message"),
    [
        (OSError(errno.EIO, "Input/output error"), StorageError, "Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied"), StorageError, "Permission denied"),
        (EOFError(), RunFolderError, "EOFError"),
    ],
)
def test_read_checkpoint_distinguishes_disk_errors_from_damage(
    error: Exception,
    error_class: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raise_error(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", raise_error)
    with pytest.raises(error_class, match=rf"last\.ckpt.*{message}") as raised:
        read_checkpoint(tmp_path / "last.ckpt")
    assert type(raised.value) is error_class
    # only a damaged checkpoint may be removed
    assert ("remove" in str(raised.value)) == (error_class is RunFolderError)
    assert ("--resume" in str(raised.value)) == (error_class is StorageError)


def test_verify_checkpoint_changed_byte_raises_run_folder_error(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"finetune": {}, "position": {}, "weights": torch.ones(10_000)}, file)
    verify_checkpoint(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    read_checkpoint(file)  # torch does not verify checksums
    with pytest.raises(RunFolderError, match=r"last\.ckpt.*/data/0"):
        verify_checkpoint(file)


def test_read_checkpoint_missing_keys_raises_run_folder_error(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}}, file)
    with pytest.raises(RunFolderError, match=r"last\.ckpt.*finetune, position"):
        read_checkpoint(file)


def test_rename_callback_states_replaces_class_names_of_version_0_1() -> None:
    best, last, stopping = {"monitor": "val/loss"}, {"monitor": None}, {"wait_count": 2}
    states = {
        "MovableCheckpoint{'monitor': 'val/loss'}": best,
        "MovableCheckpoint{'monitor': None}": last,
        "PatientStopping{'monitor': 'val/loss', 'mode': 'min'}": stopping,
        "other": {},
    }
    renamed = rename_callback_states(states)
    assert renamed == {
        BEST_STATE_KEY: best, LAST_STATE_KEY: last, EARLY_STOPPING_STATE_KEY: stopping, "other": {}
    }  # fmt: skip
    assert rename_callback_states(renamed) == renamed
