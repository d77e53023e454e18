"""Paths and names of models that were not written as runs or bundles, told without torch."""

from pathlib import Path

from finetune.system.given_paths import is_file, is_folder

HUB_PREFIXES = ("hf-hub:", "hf_hub:")
"""Prefixes of a repository on the Hugging Face hub, as in timm."""

CONFIG_FILE = "config.json"
"""File in the folders of timm and transformers."""

MODEL_SUFFIXES = (".xml", ".onnx", ".pt2")
"""Suffixes of model files of OpenVINO, ONNX and ``torch.export``."""

EXPORTABLE_KINDS = (
    "a run folder, a bundle folder, a .ckpt file, a folder of timm or transformers, or "
    "hf-hub:user/name"
)
"""Models whose network is one of torch, for messages."""

MODEL_KINDS = EXPORTABLE_KINDS.replace(
    "a .ckpt file,",
    f"a .ckpt file, an exported model ({', '.join(sorted(MODEL_SUFFIXES))} or its folder),",
)
"""Models that can be used, for messages."""


def is_hub_name(path: Path) -> bool:
    """Return whether a path is the name of a repository on the hub, ``hf-hub:user/name``."""
    return path.as_posix().startswith(HUB_PREFIXES)


def is_hub_folder(path: Path) -> bool:
    """Return whether a folder may hold a model of timm or transformers."""
    return is_file(path / CONFIG_FILE) and any(path.glob("*.safetensors"))


def find_model_file(path: Path) -> Path | None:
    """Return the model file of an exported folder, or the path if it is one; None for neither.

    Names may be in capitals.
    """
    if is_file(path):
        return path if path.suffix.lower() in MODEL_SUFFIXES else None
    if not is_folder(path):
        return None
    files = {file.name.lower(): file for file in sorted(path.iterdir()) if file.is_file()}
    names = (f"model{suffix}" for suffix in MODEL_SUFFIXES)
    return next((files[name] for name in names if name in files), None)


def is_other_model(path: Path) -> bool:
    """Return whether a path is a model of another library, or a name on the hub."""
    return is_hub_name(path) or find_model_file(path) is not None or is_hub_folder(path)
