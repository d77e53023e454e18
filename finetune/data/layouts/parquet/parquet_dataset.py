"""Labelled images of Parquet files, as the hub stores datasets: rows of image, label and split."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.data.cache.eviction import resolve_cache_root
from finetune.data.file_listing import find_rejection_reason
from finetune.data.layouts.class_names import describe_changed_names, normalize_class_name
from finetune.data.layouts.listed_paths import PathReader
from finetune.data.layouts.parquet.parquet_columns import (
    ImageColumn,
    LabelColumn,
    choose_image_column,
    choose_label_column,
    find_group_column,
)
from finetune.data.layouts.parquet.parquet_files import (
    ParquetFiles,
    find_parquet_files,
    open_parquet,
)
from finetune.data.layouts.parquet.unpacked_images import UnpackedRow, unpack_images
from finetune.data.layouts.split_names import SplitSetting, build_split_parser
from finetune.data.layouts.table_options import DEFAULT_TABLE_OPTIONS, TableOptions
from finetune.errors import DataError
from finetune.types import RejectedFile, Reporter, Sample, Split
from finetune.units import format_count

_NO_LABEL = -1
"""Number by which the ``datasets`` library writes that an image has no label."""


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
        values = _read_columns(file, column, tables)
        for row, image in enumerate(rows_of[number]):
            where = f"{file}, row {row}"
            shown = f"{files.names[number]}/row{row:05}"
            text = _read_label(values["label"][row], column, where)
            if text is None:
                result.rejected.append(RejectedFile(shown, f"no label ({_NO_LABEL})"))
                continue
            if not image.path:
                result.rejected.append(RejectedFile(shown, "no image in this row"))
                continue
            label = normalize_class_name(text)
            if not label:
                raise DataError(f"{where}: the label is empty. Fill it, or remove the row.")
            raw_names.setdefault(label, set()).add(text)
            given = values["split"][row]
            split = parse_split(str(given), where) if given else files.splits[number]
            sample = _place(root, file, image, label, split, _format_group(values["group"][row]))
            if sample.path in place_of:
                raise DataError(
                    f"{place_of[sample.path]} and {where}: duplicate path {sample.path}. Keep one "
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
    result.notes += describe_changed_names(raw_names, noun="label")
    return result


def list_parquet_images(
    files: ParquetFiles, *, reporter: Reporter
) -> tuple[list[Path], list[RejectedFile]]:
    """Return the image files of Parquet files that need no labels, and the rows without one."""
    root, rows_of = _find_images(files, DEFAULT_TABLE_OPTIONS, reporter)
    images: list[Path] = []
    rejected: list[RejectedFile] = []
    for file, name, rows in zip(files.files, files.names, rows_of, strict=True):
        for row, image in enumerate(rows):
            if image.path:
                images.append(root / _locate(root, file, image))
            else:
                rejected.append(RejectedFile(f"{name}/row{row:05}", "no image in this row"))
    return images, rejected


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
        unpacked = unpack_images(files, columns, root=root, reporter=reporter)
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


def _place(
    root: Path, file: Path, image: UnpackedRow, label: str, split: Split | None, group: str
) -> Sample:
    return Sample(_locate(root, file, image), label, split, group)


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


def _read_label_column(file: Path, tables: TableOptions) -> LabelColumn:
    with open_parquet(file) as opened:
        return choose_label_column(file, opened.schema_arrow, tables)


def _read_columns(
    file: Path, label: LabelColumn, tables: TableOptions
) -> Mapping[str, Sequence[Any]]:
    """Return the values of label, split and group of all rows."""
    with open_parquet(file) as opened:
        schema = opened.schema_arrow
        names = {"label": label.name, "group": find_group_column(file, schema, tables)}
        names["split"] = "split" if "split" in schema.names else None
        present = sorted({name for name in names.values() if name is not None})
        table = opened.read(columns=present, use_threads=False)
    empty = [None] * table.num_rows
    return {
        key: empty if name is None else table.column(name).to_pylist()
        for key, name in names.items()
    }


def _read_label(value: Any, column: LabelColumn, where: str) -> str | None:
    """Return the class name of a label; None for an image without one.

    Raises:
        DataError: The label is missing, or is a number without a name.
    """
    if value is None:
        raise DataError(f"{where}: column '{column.name}' is empty. Fill it, or remove the row.")
    if column.class_names is None or not column.is_number:
        return str(value)
    number = int(value)
    if number == _NO_LABEL:
        return None
    if not 0 <= number < len(column.class_names):
        raise DataError(
            f"{where}: label {number} has no name; column '{column.name}' has names for 0 to "
            f"{len(column.class_names) - 1}. Correct the label or the names."
        )
    return column.class_names[number]


def _format_group(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _describe_columns(columns: Sequence[LabelColumn]) -> list[str]:
    """Return a line if labels are numbers without names.

    Raises:
        DataError: Files have different names for the same numbers.
    """
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
