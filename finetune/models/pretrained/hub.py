"""Pretrained weights on the Hugging Face hub and other hosts: addresses, caches, reachability."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import timm
import torch

from finetune.errors import ModelError
from finetune.lookup import is_import_path

_HUB_PREFIXES = ("hf-hub:", "hf_hub:")
_WEIGHTS_FILE_NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class HubWeights:
    """Pretrained weights that timm knows for a backbone.

    Attributes:
        name: Name of the backbone with the tag of its weights.
        repository: Repository on the Hugging Face hub, with "@revision" if one is given; "" for
            another host.
        url: URL of the file on another host; "" for the hub.
        file_names: Possible names of the weights file, in order of preference.
    """

    name: str
    repository: str
    url: str
    file_names: tuple[str, ...]

    @property
    def address(self) -> str:
        """URL of the weights."""
        return f"{_get_hub_endpoint()}/{self.repository}" if self.repository else self.url

    @property
    def cache_dir(self) -> Path:
        """Cache folder of the weights on this machine; it need not exist."""
        if not self.repository:
            return Path(torch.hub.get_dir(), "checkpoints")
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def find_cached(self) -> Path | None:
        """Return the weights file in this machine's cache, or None."""
        if not self.repository:
            file = self.cache_dir / self.file_names[0]
            return file if file.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        repository, _, revision = self.repository.partition("@")
        paths = (
            try_to_load_from_cache(repository, name, revision=revision or None)
            for name in self.file_names
        )
        return next((Path(path) for path in paths if isinstance(path, str)), None)


def find_hub_weights(backbone: str) -> HubWeights | None:
    """Return the pretrained weights of a backbone, or None where timm knows none."""
    if backbone.startswith(_HUB_PREFIXES):
        return HubWeights(backbone, backbone.partition(":")[2], "", _WEIGHTS_FILE_NAMES)
    cfg = None if is_import_path(backbone) else timm.get_pretrained_cfg(backbone)
    if cfg is None or not cfg.has_weights:
        return None
    name = f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture)
    if cfg.hf_hub_id:
        return HubWeights(name, str(cfg.hf_hub_id), "", _WEIGHTS_FILE_NAMES)
    url = str(cfg.url)
    return HubWeights(name, "", url, (Path(urlparse(url).path).name,))


def check_cached_or_reachable(weights: HubWeights, backbone: str) -> Path | None:
    """Return the cached weights file, or None where it is not cached but its host is reachable.

    Raises:
        ModelError: Neither; raised at once, where the hub's client would retry for a minute.
    """
    file = weights.find_cached()
    if file is not None:
        return file
    from huggingface_hub import constants

    if weights.repository and constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    elif any(os.environ.get(name) for name in _PROXY_VARIABLES) or _is_reachable(weights.address):
        return None
    else:
        reason = f"{urlparse(weights.address).hostname} is not reachable from this machine"
    raise ModelError(
        f"The weights of '{backbone}' are not in the cache {weights.cache_dir}, and {reason}. "
        f"{suggest_remedy(backbone)}"
    )


def suggest_remedy(backbone: str) -> str:
    """Return a hint how to obtain weights that this machine cannot download."""
    return (
        f"On a machine with network access, download them into a cache that this one shares "
        f"(HF_HOME, TORCH_HOME): finetune fetch {backbone}. Or pass a local file or folder with "
        f"--weights, or --weights random to train from scratch."
    )


def discard(file: Path) -> None:
    """Remove a file from the cache, and the file that it links to."""
    target = file.resolve()
    file.unlink(missing_ok=True)
    target.unlink(missing_ok=True)


def _get_hub_endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT.rstrip("/")


def _is_reachable(address: str) -> bool:
    """Return whether the host of a URL accepts a TCP connection."""
    url = urlparse(address)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
