"""Labelled images of Parquet files, as the hub stores datasets: rows of image, label and split."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.cache.eviction import resolve_cache_root
from finetune.data.file_listing import find_rejection_reason
from finetune.data.layouts.class_names import describe_changed_names
from finetune.data.layouts.csv_files.joined_labels import (
    describe_joined_classes,
    find_joined_labels,
)
from finetune.data.layouts.csv_files.label_sets import join_labels
from finetune.data.layouts.listed_paths import PathReader
from finetune.data.layouts.parquet.categories import read_categories
from finetune.data.layouts.parquet.parquet_columns import (
    CategoryColumn,
    ImageColumn,
    choose_image_column,
    choose_label_column,
)
from finetune.data.layouts.parquet.parquet_files import (
    ParquetFiles,
    find_parquet_files,
    open_parquet,
)
from finetune.data.layouts.parquet.parquet_images import ParquetTable
from finetune.data.layouts.split_names import SplitSetting, build_split_parser
from finetune.data.layouts.table_options import DEFAULT_TABLE_OPTIONS, TableOptions
from finetune.data.layouts.unpacked_images import UnpackedRow, unpack_images
from finetune.data.scan_result import ImageList
from finetune.errors import DataError
from finetune.types import DEFAULT_LABEL_FORMAT, RejectedFile, Reporter, Sample
from finetune.units import format_count, shorten_text


@dataclass
class ParquetImages:
    """Images that Parquet files list.

    Attributes:
        root: Folder that the paths are relative to.
        samples: Labelled images, in the order of files and rows.
        names: Path of a sample to the name that the Parquet file gives it, where it has one.
        rejected: Rows without an image or label.
        notes: Lines that say how the files were read.
    """

    root: Path
    samples: list[Sample] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    rejected: list[RejectedFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_parquet(
    files: ParquetFiles,
    *,
    splits: SplitSetting = "auto",
    tables: TableOptions = DEFAULT_TABLE_OPTIONS,
    reporter: Reporter,
) -> ParquetImages:
    """Return the labelled images of Parquet files, unpacked as image files.

    A column ``split`` comes before the splits in the names of files.

    Args:
        files: Parquet files.
        splits: How names of splits are read, see ``scan``.
        tables: Columns, and the cache for unpacked images.
        reporter: Receives the progress of unpacking.

    Raises:
        DataError: A file is damaged, a column is missing, or a label is; the message names the
            file and the row, from 0.
    """
    label_columns = [_read_label_column(file, tables) for file in files.files]
    root, rows_of = _find_images(files, tables, reporter)
    result = ParquetImages(root, notes=list(files.notes))
    parse_split = build_split_parser(splits)
    raw_names: dict[str, set[str]] = {}
    place_of: dict[str, str] = {}
    for number, (file, column) in enumerate(zip(files.files, label_columns, strict=True)):
        values = read_categories(file, column, tables)
        for row, image in enumerate(rows_of[number]):
            where = f"{file}, row {row}"
            shown = f"{files.names[number]}/row{row:05}"
            names = values.read_labels(row, where, raw_names)
            if names is None:
                result.rejected.append(RejectedFile(shown, "no label (-1)"))
                continue
            if not image.path:
                result.rejected.append(RejectedFile(shown, "no image in this row"))
                continue
            given = values.read_optional("split", row, where)
            split = parse_split(given, where) if given else files.splits[number]
            path = _locate(root, file, image)
            group = values.read_optional("group", row, where)
            labels = names if column.is_multi_label else None
            sample = Sample(path, join_labels(names), split, group, labels=labels)
            if sample.path in place_of:
                raise DataError(
                    f"{place_of[sample.path]} and {where}: duplicate path "
                    f"{shorten_text(sample.path)}. Keep one "
                    f"row per image."
                )
            place_of[sample.path] = where
            if image.is_reference and (reason := find_rejection_reason(root / sample.path)):
                result.rejected.append(RejectedFile(sample.path, reason))
                continue
            result.samples.append(sample)
            if image.name:
                result.names[sample.path] = image.name
    result.notes += _describe_columns(label_columns)
    _check_joined_labels(result, files.files[0], label_columns[0], raw_names, tables, reporter)
    result.notes += describe_changed_names(raw_names, noun="label")
    return result


def _check_joined_labels(
    result: ParquetImages,
    file: Path,
    column: CategoryColumn,
    names: Collection[str],
    tables: TableOptions,
    reporter: Reporter,
) -> None:
    """Add a note, or warn, if texts are probably several labels each, as in a CSV.

    Raises:
        DataError: They certainly are: no text has the separator that is set.
    """
    if column.is_number or column.is_list:
        return
    if not column.is_multi_label:
        if tables.labels.task == "auto":
            mark = DEFAULT_LABEL_FORMAT.separator
            texts = [s.label for s in result.samples if mark in s.label.strip(mark)]
            result.notes += describe_joined_classes(
                file, names, num_joined=len(texts), example=next(iter(texts), "")
            )
        return
    joined = find_joined_labels(names, separator=column.separator, known=tables.labels.known)
    if joined is None:
        return
    text = joined.describe(file, separator=column.separator, can_set=not tables.labels.known)
    if joined.is_certain and all(len(sample.class_names) < 2 for sample in result.samples):
        raise DataError(text)
    reporter.warn(text.removesuffix("."))


def list_parquet_images(
    files: ParquetFiles, *, tables: TableOptions, reporter: Reporter
) -> ImageList:
    """Return the images of Parquet files that need no labels, named by file and row."""
    root, rows_of = _find_images(files, tables, reporter)
    result = ImageList()
    for file, name, rows in zip(files.files, files.names, rows_of, strict=True):
        for row, image in enumerate(rows):
            shown = f"{name}/row{row:05}"
            if not image.path:
                result.rejected.append(RejectedFile(shown, "no image in this row"))
                continue
            path = root / _locate(root, file, image)
            result.files.append(path)
            if not image.is_reference:
                result.names[str(path)] = shown
    return result


def find_parquet_root(path: Path, tables: TableOptions) -> Path | None:
    """Return the folder that the images of a Parquet dataset are relative to; None without one.

    Images are unpacked again if they were removed from the cache.
    """
    files = find_parquet_files(path.resolve(), "none")
    if files is None:
        return None
    return _find_images(files, tables, Reporter())[0]


def _find_images(
    files: ParquetFiles, tables: TableOptions, reporter: Reporter
) -> tuple[Path, Sequence[Sequence[UnpackedRow]]]:
    """Return the folder of the images, and the rows of each file.

    It is that of the unpacked images, or that of the Parquet files if these only list paths.
    """
    columns: list[ImageColumn] = []
    for file in files.files:
        with open_parquet(file) as opened:
            columns.append(choose_image_column(file, opened.schema_arrow, tables))
    if any(column.kind != "path" for column in columns):
        root = resolve_cache_root(tables.cache)
        mixed = next((n for n, c in enumerate(columns) if c.kind == "path"), None)
        if mixed is not None:
            raise DataError(
                f"{files.files[mixed]} has paths of images and another file of {files.base} has "
                f"images. Read them one by one."
            )
        parts = [
            ParquetTable(file, name, column.name)
            for file, name, column in zip(files.files, files.names, columns, strict=True)
        ]
        unpacked = unpack_images(
            parts, base=files.base, kind="parquet", root=root, reporter=reporter
        )
        return unpacked.folder, unpacked.rows
    rows = []
    for file, column in zip(files.files, columns, strict=True):
        with open_parquet(file) as opened:
            table = opened.read(columns=[column.name], use_threads=False)
        paths = table.column(0).to_pylist()
        rows.append(
            [UnpackedRow(path or "", path or "", is_reference=bool(path)) for path in paths]
        )
    return files.base, rows


def _locate(root: Path, file: Path, image: UnpackedRow) -> str:
    """Return the path of an image relative to the root, absolute if it lies outside.

    Raises:
        DataError: It is an address, or a path of Windows.
    """
    if not image.is_reference:
        return image.path
    text = PathReader(file).parse(image.path, str(file))
    full = Path(os.path.normpath(file.parent / text))
    return (full.relative_to(root) if full.is_relative_to(root) else full).as_posix()


def _read_label_column(file: Path, tables: TableOptions) -> CategoryColumn:
    with open_parquet(file) as opened:
        return choose_label_column(file, opened.schema_arrow, tables)


def _describe_columns(columns: Sequence[CategoryColumn]) -> list[str]:
    """Return a line if labels are numbers without names.

    Raises:
        DataError: Files have different names for the same numbers.
    """
    if len({column.is_multi_label for column in columns}) > 1:
        raise DataError(
            "Some of the Parquet files have lists of labels and others one class for an image. "
            "Read them one by one, or set data.label_column."
        )
    names = {column.class_names for column in columns if column.is_number}
    if len(names) > 1:
        lists = [("none" if n is None else ", ".join(n[:3]) + ", ...") for n in names]
        raise DataError(
            f"The Parquet files have different class names for the same numbers "
            f"({'; '.join(lists)}). Read them one by one, or write the labels as texts."
        )
    if names == {None}:
        files = format_count(len(columns), "file")
        return [f"Labels of {files} are numbers without class names; the numbers are the names."]
    return []
