"""A checkpoint is whole or absent."""

import errno
import resource
import signal
from pathlib import Path

import pytest
import torch

from finetune.errors import RunFolderError, StorageError
from finetune.training.callbacks.checkpoint import (
    AtomicCheckpointIO,
    read_checkpoint,
    verify_checkpoint,
)
from tests.support.helpers import tiny_disk


class Refuses:
    """What cannot be saved."""

    def __reduce__(self) -> str:
        raise RuntimeError("not to be saved")


def test_a_checkpoint_that_fails_leaves_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"epoch": 1}, file)
    with pytest.raises(RuntimeError, match="not to be saved"):
        writer.save_checkpoint({"epoch": 2, "what": Refuses()}, file)
    assert torch.load(file, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_leaves_the_checkpoint_before_and_is_explained(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", size="1m") as disk:
        writer = AtomicCheckpointIO()
        writer.save_checkpoint({"epoch": 1}, disk / "last.ckpt")
        with pytest.raises(StorageError, match=r"last\.ckpt: no space is left on the device"):
            writer.save_checkpoint({"weights": torch.zeros(10**6)}, disk / "last.ckpt")
        assert torch.load(disk / "last.ckpt", weights_only=True) == {"epoch": 1}
        assert [file.name for file in disk.iterdir()] == ["last.ckpt"]


def test_a_file_size_limit_is_explained_too(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match="larger than is allowed"):
            AtomicCheckpointIO().save_checkpoint(
                {"weights": torch.zeros(10**6)}, tmp_path / "last.ckpt"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.EIO, "Input/output error"), StorageError, "may well be whole"),
        (PermissionError(errno.EACCES, "Permission denied"), StorageError, "Permission denied"),
        (EOFError(), RunFolderError, r"is damaged \(EOFError\)"),
    ],
)
def test_a_disk_that_fails_is_no_damaged_checkpoint(
    error: Exception,
    kind: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load_state_dict", failing)
    with pytest.raises(kind, match=message) as caught:
        read_checkpoint(tmp_path / "last.ckpt")
    assert type(caught.value) is kind
    assert ("Remove it" in str(caught.value)) == (kind is RunFolderError)


def test_a_checkpoint_of_which_some_bytes_have_changed_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"finetune": {}, "position": {}, "weights": torch.ones(10_000)}, file)
    verify_checkpoint(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    read_checkpoint(file)  # torch does not look
    with pytest.raises(RunFolderError, match=r"is damaged \(.*/data/0 does not fit its checksum\)"):
        verify_checkpoint(file)
