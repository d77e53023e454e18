"""Record of the files of a push, in the repository: what the next push may remove."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.bundle.verification.json_file import read_json_file

RECORD_FILE = "pushed_files.json"

_KINDS = (
    ".safetensors", ".onnx", ".onnx.data", "parity.json", "config.json", "finetune.json",
    "file_digests.json",
)  # fmt: skip
_KEY = "files"


@dataclass(frozen=True, slots=True)
class StaleFiles:
    """Files of a repository that are no part of the model that is pushed.

    Attributes:
        removed: Those that an earlier push has recorded, which this push removes.
        unrecorded: Those of the kinds of a model that no push has recorded; they are left.
    """

    removed: tuple[str, ...]
    unrecorded: tuple[str, ...]


def write_record(folder: Path, files: Sequence[str]) -> None:
    """Write the record of an upload into its folder.

    Args:
        folder: Folder that is uploaded.
        files: Paths of its other files, relative to the folder.
    """
    content = json.dumps({_KEY: sorted({*files, RECORD_FILE})}, indent=2, ensure_ascii=False)
    (folder / RECORD_FILE).write_text(content + "\n", encoding="utf-8")


def read_record(file: Path) -> tuple[str, ...]:
    """Return the paths that a record has; none for one that is damaged."""
    try:
        tree = read_json_file(file)
    except (OSError, ValueError):
        return ()
    files = tree.get(_KEY) if isinstance(tree, dict) else None
    return tuple(name for name in files if isinstance(name, str)) if isinstance(files, list) else ()


def find_stale_files(
    stored: Sequence[str], recorded: Sequence[str], pushed: Sequence[str]
) -> StaleFiles:
    """Return the files of a repository that are no part of the model that is pushed.

    Args:
        stored: Paths of the files in the repository.
        recorded: Paths that the record of the last push has.
        pushed: Paths of the files that are uploaded.
    """
    old = [file for file in stored if file not in set(pushed)]
    return StaleFiles(
        tuple(file for file in old if file in set(recorded)),
        tuple(file for file in old if file not in set(recorded) and file.endswith(_KINDS)),
    )
