"""Checkpoint files of a network: their keys, and reading and writing whole files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetune.system.files import write_file_atomically

NETWORK_PREFIX = "classifier.network."
"""Prefix of the network's tensors in the ``state_dict`` of a checkpoint."""

AVERAGE_KEY = "average"
"""Checkpoint key of averaged weights, by their names in its ``state_dict``, if there are any. They
are evaluated and used; training resumes from the raw weights."""


def load_checkpoint_file(file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint; its tensors stay in the file until they are used."""
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint


def save_checkpoint_file(checkpoint: Mapping[str, Any], file: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    with write_file_atomically(file) as temporary, temporary.open("wb") as stream:
        torch.save(dict(checkpoint), stream)
