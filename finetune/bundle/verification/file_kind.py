"""Files that are no checkpoint, told before torch opens them."""

import zipfile
from pathlib import Path

from finetune.bundle.runtimes.model_paths import MODEL_KINDS

_CARD_FILES = ("finetune.json", "config.json")
_RUN_FILES = ("config.yaml", "manifest.csv")


def explain_other_kind(file: Path) -> str | None:
    """Return why a file is no checkpoint, and what to pass in its place; None if it may be one.

    Args:
        file: File that is no model of another library.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            is_torch_file = any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        is_torch_file = False
    if is_torch_file:
        return None
    if file.suffix.lower() == ".ckpt":
        state = "its content is no archive of torch.save" if file.stat().st_size else "it is empty"
        return (
            f"{file} is not a checkpoint written by finetune, or it is damaged ({state}). Pass "
            f"{MODEL_KINDS}."
        )
    folder = file.parent
    if any((folder / name).is_file() for name in _CARD_FILES):
        return f"{file} is a part of a model, or lies beside one. Pass its folder: {folder}"
    if all((folder / name).is_file() for name in _RUN_FILES):
        return f"{file} is a file of a run. Pass the run folder: {folder}"
    if file.suffix.lower() == ".safetensors":
        return (
            f"{file} has weights alone, without the classes and the preprocessing of a model. Pass "
            f"the folder of a model, or begin a run with the weights: finetune fit DATA --weights "
            f"{file.name}"
        )
    return f"{file} is no model. Pass {MODEL_KINDS}."
