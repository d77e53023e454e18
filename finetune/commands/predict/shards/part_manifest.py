"""Manifest of a folder of predictions in parts: the model, the options and the images."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.errors import RunFolderError
from finetune.system.files import translate_disk_errors, write_text

MANIFEST_NAME = "_manifest.json"
"""Name of the manifest. Readers of Parquet folders pass over names that begin with _ or a dot."""

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PartManifest:
    """Model, options and images that the parts of a folder have in common.

    Attributes:
        model: Digest of the weights and the card.
        models: Paths of the models, for messages.
        options: Settings that change predictions, by the names of their options.
        images: Digest of the list of images.
        inputs: Inputs, for messages.
        num_images: Number of images if it was known, else None.
        num_shards: Number of shards.
        part_size: Number of images of a part.
    """

    model: str
    models: tuple[str, ...]
    options: Mapping[str, Any]
    images: str
    inputs: tuple[str, ...]
    num_images: int | None
    num_shards: int
    part_size: int

    def list_option_differences(self, options: Mapping[str, Any]) -> list[str]:
        """Return how the options of another prediction differ, in clauses for a message."""
        return [
            f"{name} (before: {_format(value)}; now: {_format(options.get(name))})"
            for name, value in self.options.items()
            if value != options.get(name)
        ]

    def list_differences(self, other: "PartManifest") -> list[str]:
        """Return how another prediction differs from this one, in clauses for a message."""
        found = []
        if self.model != other.model:
            found.append(
                f"the model (before: {', '.join(self.models)}; now: {', '.join(other.models)}, or "
                f"its weights or card have changed)"
            )
        found += self.list_option_differences(other.options)
        if self.images != other.images:
            counts = ""
            if None not in (self.num_images, other.num_images):
                counts = f", {self.num_images:,} and {other.num_images:,}"
            before, now = ", ".join(self.inputs), ", ".join(other.inputs)
            found.append(f"the list of images (before: {before}; now: {now}{counts})")
        return found


def open_folder(folder: Path, manifest: PartManifest, *, has_part_size: bool) -> PartManifest:
    """Return the manifest of a folder, which is created unless it exists.

    Several processes may call this at once: the first one writes the manifest.

    Args:
        folder: Folder of the parts.
        manifest: Manifest of this prediction.
        has_part_size: Whether the user has chosen the part size, which then must be the same.

    Raises:
        RunFolderError: The folder holds something else, or parts of another prediction.
        StorageError: The folder cannot be written.
    """
    part_size = manifest.part_size if has_part_size else None
    stored = check_folder(folder, manifest.options, part_size=part_size)
    if stored is None:
        path = folder / MANIFEST_NAME
        _write_once(path, json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=2) + "\n")
        stored = _read(path)
    _check_differences(folder, stored.list_differences(manifest), stored, part_size)
    return stored


def check_folder(
    folder: Path, options: Mapping[str, Any], *, part_size: int | None
) -> PartManifest | None:
    """Check that a folder may hold the parts of a prediction, without its model and images.

    Args:
        folder: Folder of the parts.
        options: Settings that change predictions, by the names of their options.
        part_size: Number of images of a part that the user has chosen; None for none.

    Returns:
        The manifest of the folder; None if there is none.

    Raises:
        RunFolderError: The folder holds something else, or parts with other options.
    """
    path = folder / MANIFEST_NAME
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"--shards {folder} is a file. Give the path of a folder.")
    if path.exists():
        stored = _read(path)
        _check_differences(folder, stored.list_option_differences(options), stored, part_size)
        return stored
    if folder.is_dir() and any(not entry.name.startswith((".", "_")) for entry in folder.iterdir()):
        raise RunFolderError(
            f"--shards {folder} is not empty, and has no {MANIFEST_NAME}. Give a new "
            f"folder, or one in which a prediction was stopped."
        )
    return None


def _check_differences(
    folder: Path, differences: Sequence[str], stored: PartManifest, part_size: int | None
) -> None:
    """Check that a prediction continues the stored one, whose part size is kept unless given.

    Raises:
        RunFolderError: It is another one.
    """
    found = list(differences)
    if part_size is not None and stored.part_size != part_size:
        found.append(f"--part-size (before: {stored.part_size:,}; now: {part_size:,})")
    if found:
        raise RunFolderError(
            f"{folder} has parts of another prediction, which differs in {'; '.join(found)}. "
            f"Give the same model, options and images to continue it, or another folder."
        )


def _write_once(path: Path, text: str) -> None:
    """Write a file unless another process has; it appears complete.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    write_text(temporary, text)
    with translate_disk_errors(path):
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> PartManifest:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.pop("format") != _FORMAT:
            raise ValueError("another format")
        tuples = {key: tuple(tree[key]) for key in ("models", "inputs")}
        return PartManifest(**{**tree, **tuples})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path} is damaged, or was written by another release ({error}). Give another folder."
        ) from error


def _format(value: Any) -> str:
    return "none" if value is None else str(value)
