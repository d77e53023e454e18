"""Manifest of a folder of predictions in parts: the model, the options and the images."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.bundle.bundle import ModelBundle
from finetune.errors import RunFolderError
from finetune.system.files import translate_disk_errors, write_text

MANIFEST_NAME = "_manifest.json"
"""Name of the manifest. Readers of Parquet folders pass over names that begin with _ or a dot."""

_FORMAT = 1
_BLOCK_SIZE = 1 << 20


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

    def list_differences(self, other: "PartManifest") -> list[str]:
        """Return how another prediction differs from this one, in clauses for a message."""
        found = []
        if self.model != other.model:
            found.append(
                f"the model (before: {', '.join(self.models)}; now: {', '.join(other.models)}, or "
                f"its weights or card have changed)"
            )
        for name, value in self.options.items():
            if value != other.options.get(name):
                found.append(
                    f"{name} (before: {_format(value)}; now: {_format(other.options.get(name))})"
                )
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
    path = folder / MANIFEST_NAME
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"--shards {folder} is a file. Give the path of a folder.")
    if not path.exists():
        if folder.is_dir() and any(
            not entry.name.startswith((".", "_")) for entry in folder.iterdir()
        ):
            raise RunFolderError(
                f"--shards {folder} is not empty, and has no {MANIFEST_NAME}. Give a new "
                f"folder, or one in which a prediction was stopped."
            )
        _write_once(path, json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=2) + "\n")
    stored = _read(path)
    differences = stored.list_differences(manifest)
    if has_part_size and stored.part_size != manifest.part_size:
        differences.append(
            f"--part-size (before: {stored.part_size:,}; now: {manifest.part_size:,})"
        )
    if differences:
        raise RunFolderError(
            f"{folder} has parts of another prediction, which differs in {'; '.join(differences)}. "
            f"Give the same model, options and images to continue it, or another folder."
        )
    return stored


def compute_model_digest(bundle: ModelBundle) -> str:
    """Return a digest of the weights and cards of a model and its members."""
    digest = hashlib.blake2b(digest_size=16)
    for weight, member in zip(bundle.weights or (1.0,), bundle.members or (bundle,), strict=True):
        card = json.dumps(member.card.to_json(), sort_keys=True, default=str)
        digest.update(f"{weight!r}\n{card}\n".encode())
        state = member.network.state_dict()
        for name, tensor in sorted(state.items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
        if not state and member.source.exists():  # run by another runtime, from a file
            _add_files(digest, member.source)
    return digest.hexdigest()


def _add_files(digest: "hashlib.blake2b", source: Path) -> None:
    files = sorted(f for f in source.rglob("*") if f.is_file()) if source.is_dir() else [source]
    for file in files:
        digest.update(f"{file.name}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK_SIZE):
                digest.update(block)


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
