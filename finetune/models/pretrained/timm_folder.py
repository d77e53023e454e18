"""Folders of weights as timm writes them, read without torch."""

import json
from pathlib import Path
from typing import Any

from finetune.errors import ModelError
from finetune.lookup import is_import_path


def read_timm_folder(path: Path, backbone: str) -> tuple[Path, dict[str, Any]]:
    """Return the weights file and pretrained config of a timm folder, bundle or run folder.

    Raises:
        ModelError: The folder is none of them, lacks its weights, or is of another backbone.
    """
    folder = path / "bundle" if (path / "bundle" / "config.json").is_file() else path
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = str(config["architecture"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path} is not a timm folder: config.json is missing or damaged. Pass a folder "
            f"written by timm or `finetune export`, or a weights file."
        ) from error
    own = backbone if is_import_path(backbone) else backbone.partition(".")[0]
    if architecture != own:
        raise ModelError(
            f"{path} contains weights of '{architecture}', but the backbone is '{backbone}'. "
            f"Pass --backbone {architecture}."
        )
    cfg = dict(config.get("pretrained_cfg", {}))
    for key in ("num_classes", "label_names", "architecture", "tag", "url", "hf_hub_id"):
        cfg.pop(key, None)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name, cfg
    raise ModelError(f"{path} contains no model.safetensors. Export the model again.")
