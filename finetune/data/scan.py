"""Scan for labelled images: class folders, split folders of these, a CSV, or Parquet files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.data.class_folders import read_class_folders
from finetune.data.file_listing import (
    escape_path,
    find_rejection_reason,
    raise_listing_error,
    walk_files,
)
from finetune.data.layouts.csv_files.label_csv import LabelledFiles, read_label_csv
from finetune.data.layouts.group_suggestion import suggest_groups
from finetune.data.layouts.name_groups import group_by_name, name_below_parents
from finetune.data.layouts.parquet.parquet_dataset import (
    ParquetImages,
    list_parquet_images,
    read_parquet,
)
from finetune.data.layouts.parquet.parquet_files import (
    find_parquet_files,
    is_parquet_path,
    list_parquet_files,
)
from finetune.data.layouts.split_names import SplitSetting
from finetune.data.layouts.table_options import DEFAULT_TABLE_OPTIONS, TableOptions
from finetune.data.scan_result import ImageList, Scan
from finetune.errors import DataError
from finetune.lookup import explain_missing
from finetune.system.given_paths import exists
from finetune.types import LabelFormat, RejectedFile, Reporter
from finetune.units import format_count, shorten_text

__all__ = ["Scan", "check_path", "check_single_label", "list_images", "scan"]


def scan(
    path: Path,
    *,
    splits: SplitSetting = "auto",
    allow_empty: bool = False,
    tables: TableOptions = DEFAULT_TABLE_OPTIONS,
    reporter: Reporter | None = None,
) -> Scan:
    """Return the labelled images below a folder, in a CSV or in Parquet files.

    A folder holds class folders, or split folders of class folders, see ``find_layout``. Hidden
    folders, ``__MACOSX`` and what finetune has written are skipped; links are followed without
    loops. A CSV has the columns ``path,label[,split][,group]``. Images inside of a CSV or Parquet
    files are unpacked into the cache.

    Args:
        path: Data folder, CSV, or Parquet file, folder of such or pattern for them.
        splits: How splits are found: "auto" by their names, "none" not at all, or by given names.
        allow_empty: Whether to report a class folder without images instead of raising.
        tables: Columns and labels of tables, and groups in names.
        reporter: Receives the progress of long steps, and warnings.

    Raises:
        DataError: The path is missing, is of another kind, holds no labelled image, or has an
            ambiguous layout.
        StorageError: The cache cannot hold the images of a table.
    """
    check_path(path)
    reporter = reporter or Reporter()
    try:
        root = path.resolve()
        names: Mapping[str, str] = {}
        if (parquet := find_parquet_files(root, splits)) is not None:
            images = read_parquet(parquet, splits=splits, tables=tables, reporter=reporter)
            result, names = _to_scan(images), images.names
        elif path.is_dir():
            check_single_label(path, tables.labels)
            _check_has_columns(path, tables)
            result = read_class_folders(root, splits, allow_empty)
        else:
            files = read_label_csv(root, splits, tables, reporter=reporter)
            result, names = _scan_csv(root, files, allow_empty=allow_empty), files.names
    except PermissionError as error:
        raise_listing_error(error)
        raise
    if not result.samples:
        raise DataError(_describe_missing_images(path, root, result.rejected))
    if result.class_parents:
        names = name_below_parents(result.samples, result.class_parents)
    if tables.group_by is None:
        suggestion = suggest_groups(result.samples, names) if tables.is_strict else None
        if suggestion is None:
            return result
        return replace(result, notes=(*result.notes, suggestion.describe()))
    named = group_by_name(result.samples, tables.group_by, names=names)
    if named.warning:
        reporter.warn(named.warning)
    notes = (*result.notes, named.note) if named.note else result.notes
    return replace(result, samples=tuple(named.samples), notes=notes)


def check_path(path: Path) -> None:
    """Check that the path is a folder, a CSV, or Parquet files, without opening it.

    Raises:
        DataError: The path is missing, or is another kind of file.
    """
    if is_parquet_path(path) and list_parquet_files(path):
        return
    _check_exists(path)
    if path.is_file() and path.suffix.lower() != ".csv":
        raise DataError(
            f"{path} is a file, but a folder of class folders, a .csv or a .parquet file is "
            f"expected."
        )


def _check_has_columns(folder: Path, tables: TableOptions) -> None:
    """Raise DataError if columns are named for images in folders."""
    named = tables.named_columns if tables.is_strict else {}
    for key, name in named.items():
        raise DataError(
            f"{key}={name} cannot apply: {folder} is a folder of images, which has no columns. "
            f"Leave it out."
        )


def _to_scan(images: ParquetImages) -> Scan:
    return Scan(
        images.root, tuple(images.samples), tuple(images.rejected), notes=tuple(images.notes)
    )


def check_single_label(folder: Path, labels: LabelFormat) -> None:
    """Check that a folder is not to be read as multi-label data, which need a CSV.

    Raises:
        DataError: It is.
    """
    if labels.task == "multi_label" and not labels.known:
        raise DataError(
            f"{folder} is a folder, which gives each image one class (data.task=multi_label). For "
            f"several labels of an image, give a CSV of path,labels, or one with a column of 0 and "
            f"1 for each label."
        )


def list_images(path: Path, *, tables: TableOptions = DEFAULT_TABLE_OPTIONS) -> ImageList:
    """Return all image files below a folder, or the one file, and the rejected files.

    Args:
        path: Folder, image file, or Parquet files.
        tables: Columns of Parquet files.

    Raises:
        DataError: The path is missing, a CSV, or contains no image.
    """
    if not is_parquet_path(path):  # else it may be a pattern
        _check_exists(path)
    files = find_parquet_files(path.resolve(), "none")
    if files is not None:
        return list_parquet_images(files, tables=tables, reporter=Reporter())
    _check_exists(path)
    if path.is_file():
        if path.suffix.lower() == ".csv":
            raise DataError(
                f"{path} is a CSV. Expected an image, a folder of images, or Parquet files: give "
                f"the folder of its images."
            )
        return ImageList([path])
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
    return ImageList(images, rejected)


def _describe_missing_images(path: Path, root: Path, rejected: Sequence[RejectedFile]) -> str:
    """Return that a data folder or table has no labelled image, the first reason, and a remedy."""
    found = f"{path} contains no labelled image ({format_count(len(rejected), 'other file')}"
    found += (
        f", the first {shorten_text(rejected[0].path)}: {rejected[0].reason})."
        if rejected
        else ")."
    )
    if is_parquet_path(root) or list_parquet_files(root):
        return f"{found} Expected an image and a label in each row."
    if not root.is_dir():
        return f"{found} Expected a line of path and label for each image below the header."
    return (
        f"{found} Expected {root.name}/<class>/<image>, {root.name}/train/<class>/<image>, or a "
        f"CSV of path,label."
    )


def _scan_csv(file: Path, files: LabelledFiles, *, allow_empty: bool) -> Scan:
    """Return the images of a CSV.

    Raises:
        DataError: No file of a class is an image by its name.
    """
    if files.lost_classes and not (files.samples and allow_empty):
        label, problem = next(iter(files.lost_classes.items()))
        which = f"no image of class '{label}'" if files.samples else "no image"
        raise DataError(f"{file} lists {which}: {problem}")
    empty = tuple((label, None) for label in sorted(files.lost_classes))
    lost = sorted(files.lost_classes.items())
    notes = (f"{file.name} lists no image of class '{label}': {why}" for label, why in lost)
    return Scan(
        files.root, tuple(files.samples), tuple(files.rejected), empty, (*files.notes, *notes)
    )


def _check_exists(path: Path) -> None:
    if not exists(path):
        raise DataError(explain_missing(path, "Check the path."))
