"""Scan for labelled images: class folders, split folders of class folders, or a CSV."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.data.file_listing import (
    escape_path,
    find_rejection_reason,
    list_folders,
    raise_listing_error,
    walk_files,
)
from finetune.data.label_csv import SPLIT_NAMES, normalize_class_name, read_label_csv
from finetune.errors import DataError
from finetune.lookup import suggest_name
from finetune.types import RejectedFile, Sample, Split


@dataclass(frozen=True, slots=True)
class Scan:
    """Contents of a data root by file names alone; no image has been opened.

    Attributes:
        root: Absolute folder that the samples' paths are relative to.
        samples: Labelled image files in a stable order.
        rejected: Files that are not images by their name or location.
        empty_classes: Class and split of class folders without images.
    """

    root: Path
    samples: tuple[Sample, ...]
    rejected: tuple[RejectedFile, ...] = ()
    empty_classes: tuple[tuple[str, Split | None], ...] = ()


def scan(path: Path, *, allow_empty: bool = False) -> Scan:
    """Return the labelled images below a folder or in a CSV of ``path,label[,split][,group]``.

    A folder holds class folders, or train, val (valid, validation) and test folders of class
    folders. Hidden folders and ``__MACOSX`` are skipped; links are followed without loops.

    Args:
        path: Data folder or CSV.
        allow_empty: Whether to report a class folder without images instead of raising.

    Raises:
        DataError: The path is missing, is neither folder nor CSV, or holds no labelled image.
    """
    check_path(path)
    try:
        root = path.resolve()
        result = _scan_folder(root, allow_empty) if path.is_dir() else _scan_csv(root)
    except PermissionError as error:
        raise_listing_error(error)
        raise
    if not result.samples:
        raise DataError(
            f"{path} contains no labelled image ({len(result.rejected)} other files). Expected "
            f"{path.name}/<class>/<image>, {path.name}/train/<class>/<image>, or a CSV of "
            f"path,label."
        )
    return result


def check_path(path: Path) -> None:
    """Check that the path is a folder or a CSV, without opening it.

    Raises:
        DataError: The path is missing, or is another kind of file.
    """
    _check_exists(path)
    if path.is_file() and path.suffix.lower() != ".csv":
        raise DataError(
            f"{path} is a file, but a folder of class folders or a .csv file is expected."
        )


def list_images(path: Path) -> tuple[list[Path], list[RejectedFile]]:
    """Return all image files below a folder, or the one file, and the rejected files.

    Raises:
        DataError: The path is missing or contains no image.
    """
    _check_exists(path)
    if path.is_file():
        return [path], []
    images: list[Path] = []
    rejected: list[RejectedFile] = []
    for file in walk_files(path):
        reason = find_rejection_reason(file)
        if reason is None:
            images.append(file)
        elif reason:
            rejected.append(RejectedFile(escape_path(file), reason))
    if not images:
        raise DataError(f"{path} contains no image ({len(rejected)} other files). Check the path.")
    return images, rejected


def has_split_folders(root: Path) -> bool:
    """Return whether a folder holds split folders of class folders, and not classes so named."""
    folders = list_folders(root)
    splits = [folder for folder in folders if folder.name.casefold() in SPLIT_NAMES]
    train = [folder for folder in splits if folder.name.casefold() == "train"]
    # without train, all folders must be splits, as in a folder for evaluation
    candidates = train or (splits if splits == folders else [])
    return bool(candidates) and all(list_folders(folder) for folder in candidates)


def _scan_folder(root: Path, allow_empty: bool) -> Scan:
    rejected: list[RejectedFile] = []
    samples: list[Sample] = []
    empty: list[tuple[str, Split | None]] = []
    folders: list[tuple[Path, Split | None]] = [(root, None)]
    if has_split_folders(root):
        folders = list(_find_split_folders(root))
        _reject_loose_files(root, root, rejected)
    for folder, split in folders:
        _reject_loose_files(folder, root, rejected)
        for class_folder in list_folders(folder):
            found = _collect_samples(class_folder, root, split, rejected)
            if not found and split in (None, Split.TRAIN):
                if not allow_empty:
                    raise DataError(
                        f"Class folder {class_folder} contains no image. Add images or remove the "
                        f"folder."
                    )
                empty.append((normalize_class_name(class_folder.name), split))
            samples += found
    return Scan(root, tuple(samples), tuple(rejected), tuple(empty))


def _scan_csv(file: Path) -> Scan:
    samples, rejected = read_label_csv(file)
    return Scan(file.parent, tuple(samples), tuple(rejected))


def _find_split_folders(root: Path) -> Iterator[tuple[Path, Split]]:
    name_of: dict[Split, str] = {}
    for folder in list_folders(root):
        split = SPLIT_NAMES.get(folder.name.casefold())
        if split is None:
            raise DataError(
                f"{root} contains split folders and also '{folder.name}', which is not a split. "
                f"Move it away, or into train as a class folder."
            )
        if split in name_of:
            raise DataError(
                f"{root} contains two {split.value} splits, '{name_of[split]}' and "
                f"'{folder.name}'. Keep one."
            )
        name_of[split] = folder.name
        yield folder, split


def _collect_samples(
    class_folder: Path, root: Path, split: Split | None, rejected: list[RejectedFile]
) -> list[Sample]:
    """Return the images of a class folder and append its other files to ``rejected``."""
    label = normalize_class_name(class_folder.name)
    samples = []
    for file in walk_files(class_folder):
        relative = file.relative_to(root)
        reason = find_rejection_reason(file)
        if reason is None:
            samples.append(Sample(relative.as_posix(), label, split))
        elif reason:
            rejected.append(RejectedFile(escape_path(relative), reason))
    return samples


def _reject_loose_files(folder: Path, root: Path, rejected: list[RejectedFile]) -> None:
    """Append the files beside the class folders to ``rejected``; images there have no label."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() or (reason := find_rejection_reason(entry)) == "":
            continue
        path = escape_path(entry.relative_to(root))
        rejected.append(RejectedFile(path, reason or "not in a class folder"))


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path} does not exist.{_suggest_sibling(path)} Check the path.")


def _suggest_sibling(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir() or not path.name:
        return ""
    hint = suggest_name(path.name, [entry.name for entry in parent.iterdir()])
    return hint if "mean" in hint else ""
