"""Where weights come from: the hub, a file, a timm folder, or nowhere."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finetune.errors import FinetuneError, ModelError
from finetune.models.hub import (
    HubWeights,
    check_cached_or_reachable,
    discard,
    find_hub_weights,
    suggest_remedy,
)
from finetune.system.files import explain_disk_error


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """Where weights come from, as timm's factory wants it.

    Attributes:
        label: What it is called in messages.
        pretrained: Whether there are any.
        overlay: Overrides of the network's config.
        hub: What timm would download; None for local files.
        cached_file: The file that an earlier download left; None if there is none.
    """

    label: str
    pretrained: bool
    overlay: dict[str, Any]
    hub: HubWeights | None = None
    cached_file: Path | None = None


def is_pretrained(weights: str) -> bool:
    """Tell whether training starts from learned weights."""
    return weights != "random"


def resolve_weights_source(weights: str, backbone: str) -> WeightsSource:
    """Return the source behind ``--weights``, files already read.

    Raises:
        ModelError: It is missing, unreadable, out of reach, or belongs to another backbone.
    """
    if weights == "random":
        return WeightsSource("random", False, {})
    if weights == "hub":
        found = find_hub_weights(backbone)
        cached = None if found is None else check_cached_or_reachable(found, backbone)
        return WeightsSource(f"hub ({backbone})", True, {}, found, cached)
    path = Path(weights).expanduser()
    if not path.exists():
        raise ModelError(
            f"The weights {weights} do not exist. Give a file or folder, 'hub' or 'random'."
        )
    cfg: dict[str, Any] = {}
    file = path
    if path.is_dir():
        file, cfg = _read_timm_folder(path, backbone)
    # another number of classes than any model has makes timm leave the old classifier out
    return WeightsSource(
        str(path), True, {**cfg, "state_dict": read_state_dict(file), "num_classes": -1}
    )


def _read_timm_folder(path: Path, backbone: str) -> tuple[Path, dict[str, Any]]:
    """Return the weights file and the preprocessing of a timm folder, bundle or run folder."""
    folder = path / "bundle" if (path / "bundle" / "config.json").is_file() else path
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = str(config["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is no timm folder: config.json is missing or damaged. Give a folder that timm "
            f"or `finetune export` wrote, or a weights file."
        ) from error
    if architecture != backbone.partition(".")[0]:
        raise ModelError(
            f"{path} holds weights of '{architecture}', but the backbone is '{backbone}'. "
            f"Add --backbone {architecture}."
        )
    cfg = dict(config.get("pretrained_cfg", {}))
    for key in ("num_classes", "label_names", "architecture", "tag", "url", "hf_hub_id"):
        cfg.pop(key, None)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name, cfg
    raise ModelError(f"{path} holds no model.safetensors. Export it again.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file, without running anything that it holds.

    Raises:
        ModelError: The file is no such file.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} cannot be read as weights: {extract_first_line(error)}. Give a state dict saved by "
            f"torch.save or a .safetensors file."
        ) from error
    except Exception as error:  # pickle.UnpicklingError and whatever a damaged pickle raises
        # torch's own message advises to run the file's code
        raise ModelError(
            f"{path} is damaged or holds more than tensors, so it is not opened. Give a file that "
            f"torch.save wrote of a state_dict() alone."
        ) from error
    for key in ("state_dict_ema", "state_dict", "model_ema", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path} holds no state dict. Save model.state_dict() with torch.save.")
    return {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def extract_first_line(error: Exception) -> str:
    """Return what matters of a library's message, in one line without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[1] if len(lines) > 1 and lines[0].endswith(":") else (lines or [repr(error)])[0]
    return text[:300].rstrip(".")


def explain_hub_error(
    backbone: str, source: WeightsSource, error: Exception
) -> FinetuneError | None:
    """Return why the hub's weights did not come, or None where they came and are whole.

    What came damaged just now, from a connection that broke off, is removed from the cache.
    """
    if source.hub is None:
        return None
    place = source.hub.cache_dir
    full = explain_disk_error(error, place, "Free it, or choose another with HF_HOME, TORCH_HOME.")
    if full is not None:
        return full
    file = source.hub.find_cached()
    if file is None:
        return ModelError(
            f"The weights of '{backbone}' could not be fetched from {source.hub.address}: "
            f"{extract_first_line(error)}. {suggest_remedy(backbone)}"
        )
    if not is_damaged(file):
        return None
    if source.cached_file is None:
        discard(file)
        return ModelError(
            f"The weights of '{backbone}' came damaged from {source.hub.address}: the connection "
            f"broke off. Try again: finetune fetch {backbone}"
        )
    return ModelError(
        f"The weights of '{backbone}' are damaged in the cache, {file}. Where there is a network, "
        f"fetch them again: finetune fetch {backbone}"
    )


def is_damaged(file: Path) -> bool:
    """Tell whether a weights file cannot be read."""
    try:
        read_state_dict(file)
    except ModelError:
        return True
    return False
