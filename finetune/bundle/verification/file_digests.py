"""Record of the SHA-256 of exported files, by which a changed or damaged file is found and named.

The digests are no signature: whoever writes a file can write its digest.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.bundle.verification.json_file import read_json_file
from finetune.errors import RunFolderError
from finetune.system.files import write_text

DIGESTS_FILE = "file_digests.json"
"""Record beside exported files; exports of earlier releases have none."""

_KEY = "sha256"
_SUFFIXES = (".onnx", ".data", ".pt2", ".xml", ".bin", ".safetensors")
_NAMES = ("config.json",)
_NUM_DIGITS = 12


def compute_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_file_digests(folder: Path) -> None:
    """Write the record of the model files in a folder; nothing where there are none.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    digests = {
        file.name: compute_sha256(file)
        for file in sorted(folder.iterdir())
        if file.is_file() and (file.suffix in _SUFFIXES or file.name in _NAMES)
    }
    if any(name not in _NAMES for name in digests):
        write_text(folder / DIGESTS_FILE, json.dumps({_KEY: digests}, indent=2) + "\n")


def check_file_digests(file: Path) -> None:
    """Check a model file, and what was exported with it, against the record in its folder.

    A file whose folder has no record, or one without this file, is not checked.

    Args:
        file: Model file that is about to be opened. Names may be in capitals.

    Raises:
        RunFolderError: A file was changed, is not complete or is missing, or the record is damaged.
    """
    folder = file.parent
    record = folder / DIGESTS_FILE
    if not record.is_file():
        return
    digests = _read_record(record)
    if file.name.lower() not in (name.lower() for name in digests):
        return
    changed = list(_find_changes(folder, digests))
    if changed:
        raise RunFolderError(
            f"{file} is not as it was exported: {'; '.join(changed)}, by the record {record}. "
            f"Copy or download the files again, or export the model again. If another program has "
            f"rewritten them on purpose, delete {DIGESTS_FILE}."
        )


def _read_record(record: Path) -> Mapping[str, str]:
    """Return the digests of a record by file name.

    Raises:
        RunFolderError: It is damaged.
    """
    try:
        tree: Any = read_json_file(record)
        digests = tree[_KEY]
        if not isinstance(digests, dict) or not all(isinstance(d, str) for d in digests.values()):
            raise ValueError(f"'{_KEY}' is no object of texts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{record} is damaged ({error!r}), and the files beside it cannot be checked. Export "
            f"the model again, or delete the record."
        ) from error
    return digests


def _find_changes(folder: Path, digests: Mapping[str, str]) -> Iterator[str]:
    """Yield what differs from a record, file by file."""
    files = {file.name.lower(): file for file in folder.iterdir() if file.is_file()}
    for name, expected in digests.items():
        file = files.get(name.lower())
        if file is None:
            yield f"{name} is missing"
        elif (actual := compute_sha256(file)) != expected:
            yield (
                f"the SHA-256 of {file.name} is {actual[:_NUM_DIGITS]}… and not "
                f"{expected[:_NUM_DIGITS]}…"
            )
