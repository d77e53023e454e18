"""Download of a model from the Hugging Face hub: JSON and safetensors, or one ONNX file."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.bundle.runtimes.model_paths import HUB_PREFIXES
from finetune.errors import ModelError

_PATTERNS = ("*.json", "*.safetensors", "README.md")
"""Files that are downloaded: no pickle, no code."""

_ONNX_FILES = ("model.onnx", "model.onnx.data")
"""Files that are downloaded from a repository without safetensors."""

_MAX_NAMES = 8


def download_model(name: str) -> Path:
    """Return the folder, in the cache of the hub, with a model of the hub.

    Files that are in the cache are not downloaded again; without a network, the cache is enough.
    An ONNX file is downloaded where the repository has no safetensors.

    Args:
        name: ``hf-hub:user/name``, with ``@revision`` for another one than the newest.

    Raises:
        ModelError: The name is invalid, the hub has no such model, its files are of another kind,
            or it cannot be reached.
    """
    prefix = next(prefix for prefix in HUB_PREFIXES if name.startswith(prefix))
    repository, _, revision = name.removeprefix(prefix).partition("@")
    folder = _download(name, repository, revision or None, _PATTERNS)
    if any(folder.rglob("*.safetensors")):
        return folder
    folder = _download(name, repository, revision or None, (*_PATTERNS, *_ONNX_FILES))
    if (folder / _ONNX_FILES[0]).is_file():
        return folder
    raise ModelError(
        f"{name} has neither safetensors nor {_ONNX_FILES[0]}, but "
        f"{_describe_files(repository, revision or None, folder)}. finetune downloads nothing "
        f"else; look for the same model with safetensors."
    )


def _download(name: str, repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder with the files of a repository that match patterns.

    Raises:
        ModelError: They cannot be downloaded.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        folder = hub.snapshot_download(repository, revision=revision, allow_patterns=list(patterns))
    except Exception as error:  # of the network, of the hub, or of an invalid name
        reason = str(error).strip().partition("\n")[0].removeprefix("Got: ")
        raise ModelError(
            f"{name} cannot be downloaded from {hub.constants.ENDPOINT}: "
            f"{reason.rstrip('.') or type(error).__name__}. Check the name, "
            f"hf-hub:user/name, and for a private model the token (hf auth login); or pass the "
            f"folder of a model that was downloaded before."
        ) from error
    return Path(folder)


def _describe_files(repository: str, revision: str | None, folder: Path) -> str:
    """Return what a repository contains; without a network, what was downloaded of it."""
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        api = hub.HfApi(endpoint=hub.constants.ENDPOINT)
        info = api.model_info(
            repository, revision=revision or hub.constants.DEFAULT_REVISION, timeout=10
        )
        files = sorted(sibling.rfilename for sibling in info.siblings or ())
    except Exception:  # of the network or of the hub, which the caller has reached before
        files = sorted(path.name for path in folder.iterdir())
    if not files:
        return "no file at all"
    more = "" if len(files) <= _MAX_NAMES else f" and {len(files) - _MAX_NAMES} more"
    return ", ".join(files[:_MAX_NAMES]) + more
