"""Scan for labelled images: class folders, split folders of class folders, or a CSV."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.data.file_listing import (
    escape_path,
    find_rejection_reason,
    is_output_folder,
    raise_listing_error,
    walk_files,
)
from finetune.data.layouts.class_names import (
    describe_changed_names,
    normalize_class_name,
    quote_name,
)
from finetune.data.layouts.folder_contents import FolderContents
from finetune.data.layouts.folder_layout import FolderLayout, find_layout
from finetune.data.layouts.label_csv import read_label_csv
from finetune.data.layouts.name_groups import group_by_name
from finetune.data.layouts.split_names import SplitSetting, parse_split_name
from finetune.data.layouts.table_options import DEFAULT_TABLE_OPTIONS, TableOptions
from finetune.errors import DataError
from finetune.lookup import suggest_name
from finetune.types import LabelFormat, RejectedFile, Reporter, Sample, Split
from finetune.units import format_count

_EFFECT_OF_EMPTY = {
    Split.TRAIN: ": there is no training split",
    Split.VAL: ": fit draws a validation split from the training images",
    Split.TEST: ": there is no test split",
}


_ONE_CLASS = LabelFormat()


@dataclass(frozen=True, slots=True)
class Scan:
    """Contents of a data root by file names alone; no image has been opened.

    Attributes:
        root: Absolute folder that the samples' paths are relative to.
        samples: Labelled image files in a stable order.
        rejected: Files that are not images by their name or location.
        empty_classes: Class and split of class folders without images.
        notes: Lines that say what was recognised or passed over.
    """

    root: Path
    samples: tuple[Sample, ...]
    rejected: tuple[RejectedFile, ...] = ()
    empty_classes: tuple[tuple[str, Split | None], ...] = ()
    notes: tuple[str, ...] = ()


def scan(
    path: Path,
    *,
    splits: SplitSetting = "auto",
    labels: LabelFormat = _ONE_CLASS,
    allow_empty: bool = False,
    tables: TableOptions = DEFAULT_TABLE_OPTIONS,
    reporter: Reporter | None = None,
) -> Scan:
    """Return the labelled images below a folder or in a CSV of ``path,label[,split][,group]``.

    A folder holds class folders, or split folders of class folders, see ``find_layout``. Hidden
    folders, ``__MACOSX`` and what finetune has written are skipped; links are followed without
    loops.

    Args:
        path: Data folder or CSV.
        splits: How splits are found: "auto" by their names, "none" not at all, or by given names.
        labels: How the labels of a CSV are written.
        allow_empty: Whether to report a class folder without images instead of raising.
        tables: Columns of tables, and groups in names.
        reporter: Receives the progress of long steps, and warnings.

    Raises:
        DataError: The path is missing, is neither folder nor CSV, holds no labelled image, or has
            an ambiguous layout.
    """
    check_path(path)
    try:
        root = path.resolve()
        if path.is_dir():
            check_single_label(path, labels)
            result = _scan_folder(root, splits, allow_empty)
        else:
            result = _scan_csv(root, splits, labels, allow_empty)
    except PermissionError as error:
        raise_listing_error(error)
        raise
    if not result.samples:
        raise DataError(_describe_missing_images(path, root, result.rejected))
    return _add_groups(result, tables.group_by, reporter or Reporter())


def _add_groups(result: Scan, pattern: str | None, reporter: Reporter) -> Scan:
    """Return the images with the groups that a pattern finds in their paths.

    Raises:
        DataError: The pattern does not suit the images.
    """
    if pattern is None:
        return result
    named = group_by_name(result.samples, pattern)
    if named.warning:
        reporter.warn(named.warning)
    notes = (*result.notes, named.note) if named.note else result.notes
    return replace(result, samples=tuple(named.samples), notes=notes)


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


def check_single_label(folder: Path, labels: LabelFormat) -> None:
    """Check that a folder is not to be read as multi-label data, which need a CSV.

    Raises:
        DataError: It is.
    """
    if labels.task == "multi_label":
        raise DataError(
            f"{folder} is a folder, which gives each image one class (data.task=multi_label). For "
            f"several labels of an image, give a CSV of path,labels, or one with a column of 0 and "
            f"1 for each label."
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
        others = format_count(len(rejected), "other file")
        raise DataError(f"{path} contains no image ({others}). Check the path.")
    return images, rejected


def _scan_folder(root: Path, splits: SplitSetting, allow_empty: bool) -> Scan:
    """Return the images of class folders, with the splits that contain these.

    Raises:
        DataError: The layout is ambiguous, or a class folder has no image.
    """
    if is_output_folder(root):
        raise DataError(
            f"{root} was written by finetune and holds no images of a data set. Give the folder of "
            f"the images."
        )
    layout = find_layout(root, splits)
    rejected: list[RejectedFile] = []
    samples: list[Sample] = []
    empty: list[tuple[str, Split | None]] = []
    outputs: list[Path] = []
    folders_of: dict[str, list[str]] = {}
    for folder in _list_levels(root, layout):
        _reject_loose_files(folder, root, rejected)
    for parent, split in layout.class_parents:
        for class_folder in (child.path for child in parent.children):
            label = normalize_class_name(class_folder.name)
            if not label:
                raise DataError(
                    f"The name of class folder {quote_name(class_folder.name)} in {parent.path} "
                    f"has no visible character. Rename the folder."
                )
            found = _collect_samples(class_folder, root, label, split, rejected, outputs)
            if not found and split in (None, Split.TRAIN):
                if not allow_empty:
                    raise DataError(
                        f"Class folder {class_folder} contains no image. Add images, or move the "
                        f"folder out of the data."
                    )
                empty.append((label, split))
            samples += found
            folders_of.setdefault(label, []).append(class_folder.name)
    for folder in layout.unlabelled:
        rejected += _reject_unlabelled_images(folder, root, outputs)
    notes = [*layout.notes, *_describe_empty_splits(root, layout, samples)]
    notes += describe_changed_names(folders_of, noun="class folder")
    if outputs:
        names = sorted(path.relative_to(root).as_posix() for path in outputs)
        notes.append(f"Passed over {', '.join(names)}, written by finetune.")
    return Scan(root, tuple(samples), tuple(rejected), tuple(empty), tuple(notes))


def _list_levels(root: Path, layout: FolderLayout) -> list[Path]:
    """Return the folders from the root to those of the class folders, each once."""
    levels = [root]
    for parent, _ in layout.class_parents:
        inner = [parent.path, *parent.path.parents]
        levels += reversed([path for path in inner if path not in levels and root in path.parents])
    return levels


def _describe_empty_splits(
    root: Path, layout: FolderLayout, samples: Sequence[Sample]
) -> list[str]:
    """Return a line for each split folder without images that says what follows."""
    filled = {sample.split for sample in samples}
    notes = []
    for parent, split in layout.class_parents:
        if split is None or parent.has_images:
            continue
        name = parent.path.relative_to(root).as_posix()
        effect = "" if split in filled else _EFFECT_OF_EMPTY[split]
        notes.append(f"{name} holds no image{effect}.")
    return notes


def _describe_missing_images(path: Path, root: Path, rejected: Sequence[RejectedFile]) -> str:
    """Return that a data folder or CSV has no labelled image, the first reason, and a remedy."""
    found = f"{path} contains no labelled image ({format_count(len(rejected), 'other file')}"
    found += f", the first {rejected[0].path}: {rejected[0].reason})." if rejected else ")."
    if not root.is_dir():
        return f"{found} Expected a line of path and label for each image below the header."
    return (
        f"{found} Expected {root.name}/<class>/<image>, {root.name}/train/<class>/<image>, or a "
        f"CSV of path,label."
    )


def _scan_csv(file: Path, splits: SplitSetting, labels: LabelFormat, allow_empty: bool) -> Scan:
    """Return the images of a CSV.

    Raises:
        DataError: The CSV is invalid, or no file of a class is an image by its name.
    """
    files = read_label_csv(file, splits, labels)
    if files.lost_classes and not (files.samples and allow_empty):
        label, problem = next(iter(files.lost_classes.items()))
        which = f"no image of class '{label}'" if files.samples else "no image"
        raise DataError(f"{file} lists {which}: {problem}")
    empty = tuple((label, None) for label in sorted(files.lost_classes))
    lost = sorted(files.lost_classes.items())
    notes = (f"{file.name} lists no image of class '{label}': {why}" for label, why in lost)
    return Scan(
        file.parent, tuple(files.samples), tuple(files.rejected), empty, (*files.notes, *notes)
    )


def _collect_samples(
    folder: Path,
    root: Path,
    label: str,
    split: Split | None,
    rejected: list[RejectedFile],
    outputs: list[Path],
) -> list[Sample]:
    """Return the images of a class folder and append its other files to ``rejected``."""
    samples = []
    for file in walk_files(folder, outputs=outputs):
        relative = file.relative_to(root)
        reason = find_rejection_reason(file)
        if reason is None:
            samples.append(Sample(relative.as_posix(), label, split))
        elif reason:
            rejected.append(RejectedFile(escape_path(relative), reason))
    return samples


def _reject_unlabelled_images(folder: Path, root: Path, outputs: list[Path]) -> list[RejectedFile]:
    """Return the images of a folder beside split folders, which are not used."""
    name = folder.relative_to(root).as_posix()
    if FolderContents(folder).pass_through(parse_split_name(folder.name)).classes:
        reason = f"not used, {name} is no split by its name (data.splits can name it)"
    else:
        reason = f"no label, {name} has no class folders"
    images = _collect_samples(folder, root, "", None, [], outputs)
    return [RejectedFile(escape_path(Path(image.path)), reason) for image in images]


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
