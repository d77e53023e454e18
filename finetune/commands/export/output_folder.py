"""Folder that an export is written to."""

from collections.abc import Sequence
from pathlib import Path

from finetune.errors import ConfigError, RunFolderError
from finetune.exporters.export_formats import ExportOptions

_FILE_SUFFIXES = {".onnx", ".pt2", ".pt", ".pth", ".xml", ".bin", ".safetensors"}


def choose_output(
    models: Sequence[Path], output: Path | None, format_name: str, options: ExportOptions
) -> Path:
    """Return the folder to create.

    Args:
        models: Paths of the exported models.
        output: Folder as given; None for one below the run folder of a single model.
        format_name: Value of ``--format``.
        options: What the files do, and in which numbers; part of the name of the folder.

    Raises:
        ConfigError: The folder is named as a file, or there is no run folder.
        RunFolderError: It exists and is not empty.
    """
    if output is None:
        output = _build_default(models, format_name, options)
    elif output.suffix.lower() in _FILE_SUFFIXES and not output.is_dir():
        raise ConfigError(
            f"--output {output} names a file, but an export is a folder: its files have names of "
            f"their own, and parity.json is among them. Use --output {output.with_suffix('')}"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError(
            f"{output} exists and is not empty. Choose another folder for --output."
        )
    return output


def _build_default(models: Sequence[Path], format_name: str, options: ExportOptions) -> Path:
    """Return ``exports/FORMAT`` in the run folder of a model.

    Raises:
        ConfigError: There are several models, or the model is in no run folder.
    """
    run = _find_run(models[0])
    if len(models) > 1 or run is None:
        which = "several models" if len(models) > 1 else f"{models[0]}, which is in no run folder"
        raise ConfigError(
            f"--output is missing: there is no folder for the export of {which}. Give one: "
            f"--output FOLDER"
        )
    parts = [
        format_name,
        *(["preprocessing"] if options.includes_preprocessing else []),
        *([options.precision] if options.precision != "fp32" else []),
    ]
    return run / "exports" / "-".join(parts)


def _find_run(model: Path) -> Path | None:
    """Return the run folder of a model: itself, or that of its bundle or checkpoint."""
    parent = model.parent
    folders = (model, parent, parent.parent) if model.suffix == ".ckpt" else (model, parent)
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)
