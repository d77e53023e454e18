"""Download of a model from the Hugging Face hub: its JSON files and safetensors, nothing else."""

import importlib
from pathlib import Path

from finetune.bundle.runtimes.model_paths import HUB_PREFIXES
from finetune.errors import ModelError

_PATTERNS = ("*.json", "*.safetensors", "README.md")
"""Files that are downloaded: no pickle, no code."""


def download_model(name: str) -> Path:
    """Return the folder, in the cache of the hub, with a model of the hub.

    Files that are in the cache are not downloaded again; without a network, the cache is enough.

    Args:
        name: ``hf-hub:user/name``, with ``@revision`` for another one than the newest.

    Raises:
        ModelError: The name is invalid, the hub has no such model, or it cannot be reached.
    """
    prefix = next(prefix for prefix in HUB_PREFIXES if name.startswith(prefix))
    repository, _, revision = name.removeprefix(prefix).partition("@")
    hub = importlib.import_module("huggingface_hub")
    try:
        folder = hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(_PATTERNS)
        )
    except Exception as error:  # of the network, of the hub, or of an invalid name
        reason = str(error).strip().partition("\n")[0].removeprefix("Got: ")
        raise ModelError(
            f"{name} cannot be downloaded from {hub.constants.ENDPOINT}: "
            f"{reason.rstrip('.') or type(error).__name__}. Check the name, "
            f"hf-hub:user/name, and for a private model the token (hf auth login); or pass the "
            f"folder of a model that was downloaded before."
        ) from error
    return Path(folder)
