"""Check that no output of a command replaces a file of a run, a study or a model."""

from pathlib import Path

from finetune.bundle.runtimes.model_paths import find_model_file, is_hub_folder
from finetune.errors import ConfigError
from finetune.system.run_folder import is_run
from finetune.system.run_paths import RunFolder
from finetune.types import Split

_RUN_FOLDERS = ("checkpoints", "tensorboard", "wandb")
"""Folders in a run folder, of which every file belongs to the run."""

_STUDY_FILE = "study.json"
_STUDY_FILES = (
    _STUDY_FILE, "base.yaml", "space.yaml", "manifest.csv", "study.db", "trials.csv", "tune.json",
    "best.yaml",
)  # fmt: skip
_MODEL_SUFFIXES = (
    ".json", ".safetensors", ".md", ".onnx", ".data", ".xml", ".bin", ".pt2", ".ckpt"
)  # fmt: skip


def check_no_stored_file(option: str, path: Path | None) -> None:
    """Check that an output replaces no file that a run, a study or a model consists of.

    Other files in their folders, such as earlier predictions, may be replaced.

    Args:
        option: Name of the option.
        path: File that will be written; None for none.

    Raises:
        ConfigError: It would replace one.
    """
    if path is None or not path.is_file():
        return
    file = path.resolve()
    for folder in file.parents:
        kind = _find_owner(file, folder)
        if kind is not None:
            raise ConfigError(
                f"{option} {path} would replace a file of the {kind} in {folder}. Give the path "
                f"of another file."
            )


def _find_owner(file: Path, folder: Path) -> str | None:
    """Return what a file in a folder, or below it, is a part of; None for nothing."""
    inside = file.relative_to(folder)
    if is_run(folder) and (inside.parts[0] in _RUN_FOLDERS or file in _list_files(folder)):
        return "run"
    if len(inside.parts) > 1:
        return None
    if file.name in _STUDY_FILES and (folder / _STUDY_FILE).is_file():
        return "study"
    is_model_part = file.suffix.lower() in _MODEL_SUFFIXES and (
        (folder / "finetune.json").is_file()
        or find_model_file(folder) is not None
        or is_hub_folder(folder)
    )
    return "model" if is_model_part else None


def _list_files(folder: Path) -> set[Path]:
    """Return the paths of all files that a run may have."""
    run = RunFolder(folder)
    names = [name for name, value in vars(RunFolder).items() if isinstance(value, property)]
    paths = {value for name in names if isinstance(value := getattr(run, name), Path)}
    return paths | {run.get_predictions_path(split) for split in Split}
