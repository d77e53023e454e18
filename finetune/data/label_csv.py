"""Reader of a CSV that lists labelled images as ``path,label[,split][,group]``."""

import csv
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from finetune.data.file_listing import find_rejection_reason
from finetune.errors import DataError
from finetune.lookup import suggest_name
from finetune.types import RejectedFile, Sample, Split

SPLIT_NAMES: Mapping[str, Split] = {
    "train": Split.TRAIN,
    "val": Split.VAL,
    "valid": Split.VAL,
    "validation": Split.VAL,
    "test": Split.TEST,
}
"""Names of splits in folders and CSVs, in lower case."""


def read_label_csv(file: Path) -> tuple[list[Sample], list[RejectedFile]]:
    """Return the labelled images of a CSV in its order, and the files whose names are no images.

    Paths are relative to the CSV's folder, absolute if they lie outside of it.

    Raises:
        DataError: The file is not a UTF-8 CSV, lacks a column, or has an invalid or duplicate line.
    """
    samples: list[Sample] = []
    rejected: list[RejectedFile] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
            _check_columns(file, columns)
            reader.fieldnames = columns
            line_of: dict[str, int] = {}
            for row in reader:
                sample = _parse_row(row, file, reader.line_num)
                first = line_of.setdefault(sample.path, reader.line_num)
                if first != reader.line_num:
                    raise DataError(
                        f"{file}, lines {first} and {reader.line_num}: duplicate path "
                        f"{sample.path}. Keep one line per image."
                    )
                reason = find_rejection_reason(file.parent / sample.path)
                if reason:
                    rejected.append(RejectedFile(sample.path, reason))
                else:
                    samples.append(sample)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not a CSV in UTF-8: {error}.") from error
    return samples, rejected


def normalize_class_name(name: str) -> str:
    """Return a class name in Unicode NFC, so that macOS and Linux agree on it."""
    return unicodedata.normalize("NFC", name)


def _check_columns(file: Path, columns: list[str]) -> None:
    for required in ("path", "label"):
        if required not in columns:
            found = ", ".join(columns) or "none"
            raise DataError(
                f"{file} has no column '{required}' (found: {found}). The first line must name "
                f"path,label and may also name split and group."
            )


def _parse_row(row: Mapping[str, str | None], file: Path, line: int) -> Sample:
    path, label = (row.get("path") or "").strip(), (row.get("label") or "").strip()
    if not path or not label:
        raise DataError(f"{file}, line {line}: path or label is empty. Fill it or drop the line.")
    name = (row.get("split") or "").strip()
    if name and name.casefold() not in SPLIT_NAMES:
        raise DataError(
            f"{file}, line {line}: unknown split '{name}'.{suggest_name(name, SPLIT_NAMES)}"
        )
    split = SPLIT_NAMES[name.casefold()] if name else None
    image = Path(path)
    if image.is_relative_to(file.parent):
        image = image.relative_to(file.parent)
    return Sample(
        image.as_posix(), normalize_class_name(label), split, (row.get("group") or "").strip()
    )
