"""Files that are no checkpoint, and folders that are no model, told before torch opens them."""

import zipfile
from pathlib import Path

from finetune.bundle.model_card import find_bundle
from finetune.bundle.runtimes.model_paths import MODEL_KINDS, find_model_file, is_hub_folder
from finetune.data.file_listing import has_image_suffix
from finetune.models.pretrained.safetensors_file import check_no_pickle
from finetune.system.run_folder import is_run
from finetune.system.run_paths import RunFolder

_CARD_FILES = ("finetune.json", "config.json")
_RUN_FILES = ("config.yaml", "manifest.csv")
_MAX_NAMED = 6


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
    if is_torch_file and file.suffix.lower() != ".safetensors":
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
        try:
            check_no_pickle(file)
        except (OSError, ValueError) as error:
            return f"{file} is no model: {error}. Pass {MODEL_KINDS}."
        return (
            f"{file} has weights alone, without the classes and the preprocessing of a model. Pass "
            f"the folder of a model, or begin a run with the weights: finetune fit DATA --weights "
            f"{file.name}"
        )
    return f"{file} is no model. Pass {MODEL_KINDS}."


def explain_other_folder(folder: Path) -> str:
    """Return why a folder is no model, and what to pass in its place.

    Args:
        folder: Existing folder without a model.
    """
    if is_run(folder):
        return (
            f"{folder} contains no model: neither bundle/finetune.json nor checkpoints/best.ckpt "
            f"exists. If the run was stopped in its first epoch, resume it: "
            f"{RunFolder(folder).resume_command}"
        )
    children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    models = [str(child) for child in children if child.is_dir() and _is_model_folder(child)]
    if models:
        return f"{folder} is no model, but has models in it. Pass one of them: {_join(models)}"
    if any(map(_is_image, children)) or any(
        _is_image(file) for child in children if child.is_dir() for file in child.iterdir()
    ):
        return (
            f"{folder} is a folder of images, and no model. The model comes first, and the images "
            f"after it. Pass {MODEL_KINDS}."
        )
    found = "is empty" if not children else "contains no model"
    return f"{folder} {found}. Pass {MODEL_KINDS}."


def _is_model_folder(folder: Path) -> bool:
    is_exported = find_model_file(folder) is not None or is_hub_folder(folder)
    return is_exported or find_bundle(folder) is not None or is_run(folder)


def _is_image(file: Path) -> bool:
    return has_image_suffix(file) and file.is_file()


def _join(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}"
