"""Sources of pretrained weights: the hub, a file, a timm folder, or none."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from finetune.errors import FinetuneError, ModelError
from finetune.lookup import is_import_path
from finetune.models.pretrained.hub import (
    HubWeights,
    check_cached_or_reachable,
    discard,
    find_hub_weights,
    suggest_remedy,
)
from finetune.models.pretrained.safetensors_file import load_safetensors
from finetune.models.pretrained.timm_folder import read_timm_folder
from finetune.system.files import explain_disk_error
from finetune.system.given_paths import check_weights_path


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """Source of weights, in the form of arguments of timm's factory.

    Attributes:
        label: Name of the source in messages.
        pretrained: Whether there are any weights.
        overlay: Overrides of the network's pretrained config.
        hub: Weights that timm downloads; None for local files.
        cached_file: File of an earlier download; None if there is none.
    """

    label: str
    pretrained: bool
    overlay: dict[str, Any]
    hub: HubWeights | None = None
    cached_file: Path | None = None


def is_pretrained(weights: str) -> bool:
    """Return whether ``--weights`` names pretrained weights."""
    return weights != "random"


def resolve_weights_source(weights: str, backbone: str) -> WeightsSource:
    """Return the source that ``--weights`` names, with the content of local files.

    Raises:
        ModelError: The source is missing, unreadable, unreachable, or of another backbone.
    """
    if weights == "random":
        return WeightsSource("random", False, {})
    if weights == "hub" and is_import_path(backbone):
        raise ModelError(
            f"--weights hub cannot apply to '{backbone}': a network of your own has no weights on "
            f"the hub. Pass --weights random or a local file."
        )
    if weights == "hub":
        hub = find_hub_weights(backbone)
        cached_file = None if hub is None else check_cached_or_reachable(hub, backbone)
        return WeightsSource(f"hub ({backbone})", True, {}, hub, cached_file)
    path = Path(weights).expanduser()
    check_weights_path(weights)
    cfg: dict[str, Any] = {}
    file = path
    if path.is_dir():
        file, cfg = read_timm_folder(path, backbone)
    # a number of classes that no model has makes timm skip the old classifier
    return WeightsSource(
        str(path), True, {**cfg, "state_dict": read_state_dict(file), "num_classes": -1}
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a weights file, without executing code from pickles.

    Raises:
        ModelError: The file is damaged or contains no state dict.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return load_safetensors(path)
        with warnings.catch_warnings():
            # of pickle protocols; what it cannot read raises below
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} cannot be read as weights: {extract_first_line(error)}. Pass a state dict "
            f"saved by torch.save, or a .safetensors file."
        ) from error
    except Exception as error:  # pickle.UnpicklingError, or any error of a damaged pickle
        # torch's own message advises to execute the file's code
        raise ModelError(
            f"{path} is damaged or contains objects other than tensors, so it is not loaded. "
            f"Pass a file that torch.save wrote of a state_dict() alone."
        ) from error
    for key in ("state_dict_ema", "state_dict", "model_ema", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path} contains no state dict. Save model.state_dict() with torch.save.")
    return {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def extract_first_line(error: Exception) -> str:
    """Return the informative line of an error message, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[1] if len(lines) > 1 and lines[0].endswith(":") else (lines or [repr(error)])[0]
    return text[:300].rstrip(".")


def explain_hub_error(
    backbone: str, source: WeightsSource, error: Exception
) -> FinetuneError | None:
    """Return the error of a failed download, or None where the weights file is complete.

    A file that was damaged in this download, by an interrupted connection, is removed from the
    cache.
    """
    if source.hub is None:
        return None
    remedy = "Free space, or choose another cache with HF_HOME, TORCH_HOME."
    disk_error = explain_disk_error(error, source.hub.cache_dir, remedy)
    if disk_error is not None:
        return disk_error
    file = source.hub.find_cached()
    if file is None:
        return ModelError(
            f"The weights of '{backbone}' could not be downloaded from {source.hub.address}: "
            f"{extract_first_line(error)}. {suggest_remedy(backbone)}"
        )
    if not is_damaged(file):
        return None
    if source.cached_file is None:
        discard(file)
        return ModelError(
            f"The download of the weights of '{backbone}' from {source.hub.address} was "
            f"interrupted, and the damaged file was removed. Try again: finetune fetch {backbone}"
        )
    return ModelError(
        f"The cached weights of '{backbone}' are damaged: {file}. With network access, download "
        f"them again: finetune fetch {backbone}"
    )


def is_damaged(file: Path) -> bool:
    """Return whether a weights file cannot be read."""
    try:
        read_state_dict(file)
    except ModelError:
        return True
    return False
