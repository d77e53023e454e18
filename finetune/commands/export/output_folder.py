"""Folder that an export is written to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune.bundle.verification.file_digests import write_file_digests
from finetune.errors import ConfigError, RunFolderError
from finetune.exporters.export_formats import ExportOptions
from finetune.system.files import OUTPUT_REMEDY, write_folder_atomically

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
    is_given = output is not None
    if output is None:
        output = _build_default(models, format_name, options)
    elif output.suffix.lower() in _FILE_SUFFIXES and not output.is_dir():
        raise ConfigError(
            f"--output {output} names a file, but an export is a folder: its files have names of "
            f"their own, and parity.json is among them. Use --output {output.with_suffix('')}"
        )
    if output.exists() and not output.is_dir():
        raise RunFolderError(
            f"{output} is a file, and an export is a folder. Give the path of a new folder with "
            f"--output."
        )
    if output.exists() and any(output.iterdir()):
        remedy = "" if is_given else "Remove this earlier export, or "
        raise RunFolderError(
            f"{output} exists and is not empty. {remedy}{'G' if is_given else 'g'}ive the path of "
            f"a new folder with --output."
        )
    return output


@contextmanager
def write_output(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the output, with the digests of its files.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    with write_folder_atomically(output, OUTPUT_REMEDY) as temporary:
        yield temporary
        write_file_digests(temporary)


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
