"""Reader of a CSV that lists labelled images as ``path,label[,split][,group]``.

``label_sets`` reads the labels, of which a multi-label image has any number. ``csv_images`` reads
the images: paths of files, or base64.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.file_listing import find_rejection_reason, suggest_file
from finetune.data.layouts.class_names import describe_changed_names
from finetune.data.layouts.csv_files.csv_images import HeldImages, ListedImages
from finetune.data.layouts.csv_files.csv_records import NOT_USED, CsvTable
from finetune.data.layouts.csv_files.encoded_images import choose_image_column
from finetune.data.layouts.csv_files.label_sets import (
    LabelReader,
    find_binary_columns,
    join_labels,
    open_label_table,
)
from finetune.data.layouts.layout_messages import join_names
from finetune.data.layouts.split_names import SplitSetting, build_split_parser
from finetune.data.layouts.table_options import DEFAULT_TABLE_OPTIONS, TableOptions
from finetune.errors import DataError
from finetune.lookup import suggest_name
from finetune.types import RejectedFile, Reporter, Sample
from finetune.units import format_count, shorten_text

_COLUMNS = ("path", "label", "split", "group")
_BYTES_COLUMNS = ("image_bytes", "bytes", "base64", "image_base64", "image_data")


@dataclass
class LabelledFiles:
    """Images and other files that a CSV lists.

    Attributes:
        root: Folder that the paths are relative to.
        samples: Labelled images, in the order of the CSV.
        rejected: Files whose names are no images.
        lost_classes: Classes of which all files were rejected, each with a sentence that says why.
        notes: Lines that say how the CSV was read.
        names: Path of an unpacked image to the name that the CSV gives it, where it has one.
    """

    root: Path
    samples: list[Sample] = field(default_factory=list)
    rejected: list[RejectedFile] = field(default_factory=list)
    lost_classes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


def read_label_csv(
    file: Path,
    splits: SplitSetting = "auto",
    tables: TableOptions = DEFAULT_TABLE_OPTIONS,
    *,
    reporter: Reporter,
) -> LabelledFiles:
    """Return the labelled images of a CSV, and the files whose names are no images.

    Paths are relative to the CSV's folder, absolute if they lie outside of it. Images that the CSV
    holds are unpacked into the cache. Names of splits in the column split are recognised as those
    of folders.

    Args:
        file: Absolute path of the CSV.
        splits: "auto" recognises the names of splits, "none" ignores the column, and a mapping
            gives the splits of other names.
        tables: Names of columns, and the cache.
        reporter: Receives the progress of unpacking.

    Raises:
        DataError: The file is no CSV, lacks a column, or has an invalid or duplicate record; the
            message names the line where the record begins.
        StorageError: The cache cannot hold the images.
    """
    choice = choose_image_column(file, tables)
    tables = choice.tables
    single_line = [
        name for name in (*_COLUMNS, "labels") if name != "path" or not choice.is_encoded
    ]
    table, labels = open_label_table(
        file, tables.labels, single_line=sorted(single_line), roles=tables.csv_roles
    )
    _check_named_columns(file, table, tables)
    _check_columns(file, table, is_multi_label=labels.task == "multi_label")
    label_reader = LabelReader(file, table, labels)
    position = {name: table.columns.index(name) for name in _COLUMNS if name in table.columns}
    is_encoded = choice.is_encoded
    images = HeldImages(file, tables, reporter) if is_encoded else ListedImages(file)
    result = LabelledFiles(images.root, notes=[*table.notes, *choice.notes], names=images.names)
    parse_split = build_split_parser(splits)
    short_row: tuple[int, int] | None = None
    first_rejected: dict[str, tuple[int, RejectedFile, int]] = {}
    for line, values in table:
        row = {n: values[p].strip() if p < len(values) else "" for n, p in position.items()}
        if len(values) <= position.get("split", -1):
            short_row = short_row or (line, len(values))
        where = f"{file}, line {line}"
        names = label_reader.read(values, where)
        path, reason = images.read(row["path"], line, where)
        split = parse_split(row.get("split", ""), where)
        labels_of_image = names if label_reader.is_multi_label else None
        sample = Sample(
            path, join_labels(names), split, row.get("group", ""), labels=labels_of_image
        )
        if reason:
            entry = RejectedFile(path, reason)
            result.rejected.append(entry)
            _count_rejected(names, line, entry, first_rejected)
        else:
            result.samples.append(sample)
    if short_row and any(sample.split for sample in result.samples):
        line, count = short_row
        raise DataError(
            f"{file}, line {line}: {format_count(count, 'value')} in {len(table.columns)} columns: "
            f"the row has no split, but other rows have one. Fill in what is missing, or drop the "
            f"line."
        )
    if doubt := label_reader.find_doubt(file):
        reporter.warn(doubt.removesuffix("."))
    present = {name for sample in result.samples for name in sample.class_names}
    for label, (line, entry, count) in first_rejected.items():
        if label not in present:
            count = count if present else len(result.rejected)
            result.lost_classes[label] = _describe_rejected_rows(
                file, line, entry, count, is_encoded=is_encoded
            )
    result.notes += images.notes
    result.notes += describe_changed_names(label_reader.names_of, noun="label")
    result.notes += label_reader.describe(file, is_task_given=tables.labels.task != "auto")
    return result


def _check_named_columns(file: Path, table: CsvTable, tables: TableOptions) -> None:
    """Raise DataError if a column that a config key names is missing."""
    for key, name in tables.named_columns.items():
        if tables.is_strict and name.casefold() in table.missing_roles:
            others = [column.removesuffix(NOT_USED) for column in table.columns if column]
            raise DataError(
                f"{file} has no column '{name}' ({key}).{suggest_name(name, others)} Name another "
                f"column."
            )


def _check_columns(file: Path, table: CsvTable, *, is_multi_label: bool) -> None:
    columns = table.columns
    expected = "path,labels" if "labels" in columns else "path,label"
    for required in ("path",) if is_multi_label else ("path", "label"):
        if required not in columns:
            found = ", ".join(map(shorten_text, filter(None, table.read_names()))) or "none"
            looks_like_row = any(find_rejection_reason(Path(name)) is None for name in columns)
            hint = " Is the header missing?" if looks_like_row else ""
            if required == "path" and any(name in _BYTES_COLUMNS for name in columns):
                found_name = next(name for name in columns if name in _BYTES_COLUMNS)
                hint = f" The column '{found_name}' holds no image files in base64."
            elif not hint and len(columns) > 1:
                key = "image_column" if required == "path" else "label_column"
                hint = f" If another column holds it, name it, as in data.{key}=NAME."
            if required == "label" and (names := find_binary_columns(table)):
                setting = shlex.quote(f"data.label_columns={','.join(names)}")
                hint = (
                    f" {join_names(names)} {'holds' if len(names) == 1 else 'hold'} only 0 and 1: "
                    f"if an image has any number of these labels, set {setting}."
                )
            raise DataError(
                f"{file} has no column '{required}' (found: {found}).{hint} The first line must "
                f"name {expected} and may also name split and group."
            )


def _count_rejected(
    names: Sequence[str],
    line: int,
    entry: RejectedFile,
    first_of_class: dict[str, tuple[int, RejectedFile, int]],
) -> None:
    """Count a rejected file for its classes, with the line and entry of the first one of each."""
    for name in names:
        first_line, example, count = first_of_class.get(name, (line, entry, 0))
        first_of_class[name] = first_line, example, count + 1


def _describe_rejected_rows(
    file: Path, line: int, entry: RejectedFile, count: int, *, is_encoded: bool
) -> str:
    """Return why no row of a class is an image, with the file that would fit."""
    fitting = None if is_encoded else suggest_file(file.parent, entry.path)
    hint = f" {fitting} exists: write this path." if fitting else " Correct the column path."
    if is_encoded:
        hint = " Write image files in base64, or remove the rows."
    path = shorten_text(entry.path)
    rows = "its row is" if count == 1 else f"its {format_count(count, 'row')} are"
    return f"{rows} left out, the first in line {line}: {path}: {entry.reason}.{hint}"
