"""JSON file of a model, which may be foreign: of bounded size, and inside the model's folder."""

import json
import stat
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 32 * 2**20
"""Size of a JSON file of a model; the card of 20,000 classes with three splits needs 20 MB."""


def read_json_file(file: Path) -> Any:
    """Return the content of a JSON file in the folder of a model.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no regular file, too large, no JSON, nested too deeply, or a link that
            leads out of the folder.
    """
    check_is_inside(file)
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > MAX_JSON_BYTES:
        raise ValueError(
            f"it has {status.st_size / 2**20:,.0f} MB, and no more than "
            f"{MAX_JSON_BYTES // 2**20} MB are read"
        )
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_is_inside(file: Path) -> None:
    """Check that a file is no link that leads out of its folder.

    Links into the store of the Hugging Face hub's cache, of the same repository, are its own.

    Raises:
        ValueError: It is one.
    """
    if not file.is_symlink():
        return
    target, folder = file.resolve(), file.parent.resolve()
    # <cache>/models--user--name/snapshots/<revision>/[folder/]file -> ../../blobs/<digest>
    snapshots = next((parent for parent in folder.parents if parent.name == "snapshots"), None)
    stores = [folder] if snapshots is None else [folder, snapshots.parent / "blobs"]
    if not any(target.is_relative_to(store) for store in stores):
        raise ValueError(
            f"it is a link to {target}, outside of the folder; put a copy of the file there"
        )
