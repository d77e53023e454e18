"""Images that a CSV holds in base64: their column, and the bytes of each."""

import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from finetune.data.images.formats import (
    IMAGE_SUFFIXES,
    NUM_START_BYTES,
    find_format,
    identify_content,
)
from finetune.data.layouts.csv_files.csv_records import CsvTable
from finetune.data.layouts.image_table import TableImage
from finetune.data.layouts.listed_paths import find_path_problem
from finetune.data.layouts.table_options import AUTO, PATH_COLUMNS, TableOptions
from finetune.errors import DataError

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[^,]*)?,", re.IGNORECASE)
_OTHER_CHARACTER = re.compile(r"[^A-Za-z0-9+/]")
_URL_SAFE = str.maketrans("-_", "+/")
_PYTHON_START = re.compile(r"\Ab['\"]")
_MIN_LENGTH = 24
_NUM_START_CHARACTERS = NUM_START_BYTES * 2
_NUM_EXAMPLES = 100
"""Number of records by which the column of the images is recognised."""


@dataclass(frozen=True, slots=True)
class ImageColumnChoice:
    """Column of a CSV that holds the images.

    Attributes:
        tables: Columns, with the one that was found.
        is_encoded: Whether it holds images in base64, and not paths.
        notes: Lines that say which column was taken.
    """

    tables: TableOptions
    is_encoded: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodedTable:
    """CSV with a column of images in base64.

    Attributes:
        file: Path of the CSV.
        column: Name of the column of the images, in any case.
    """

    file: Path
    column: str

    @property
    def name(self) -> str:
        """Name of the folder of its images."""
        return self.file.name

    def measure(self) -> tuple[int, int]:
        """Return upper bounds for the number of records, and of bytes of the images."""
        num_bytes = self.file.stat().st_size * 3 // 4
        return max(1, self._open().num_lines - 1), num_bytes

    def read_images(self) -> Iterator[TableImage]:
        """Yield the image of each record, named by the line on which it begins, as line00002.

        A record with the path of an image instead of base64 has no content, and that path.

        Raises:
            DataError: The CSV is invalid.
        """
        table = self._open()
        width = max(5, len(str(table.num_lines)))
        place = table.columns.index(self.column.casefold())
        others = [name for name in PATH_COLUMNS if name != self.column.casefold()]
        names = (table.columns.index(name) for name in others if name in table.columns)
        name_place = next(names, None)
        for line, values in table:
            row = f"line{line:0{width}}"
            text = values[place] if place < len(values) else ""
            given = ""
            if name_place is not None and name_place < len(values):
                given = values[name_place].strip()
            if not text.strip():
                yield TableImage(row, None, reason="no image in this row")
                continue
            if _is_path(text.strip()):
                yield TableImage(row, None, text.strip())
                continue
            try:
                content = decode_image(text)
            except ValueError as error:
                yield TableImage(row, None, reason=str(error))
            else:
                yield TableImage(row, content, given, reason="" if content else "empty image")

    def _open(self) -> CsvTable:
        return CsvTable(self.file, required=(self.column.casefold(),))


def choose_image_column(file: Path, tables: TableOptions) -> ImageColumnChoice:
    """Return which column of a CSV holds the images, by its name and by its first values.

    A column that is named, or is called path, is taken, whether it holds paths or images. Without
    one it is the only column whose values are images in base64, or ``image`` with paths.

    Args:
        file: Absolute path of the CSV.
        tables: Names of columns.

    Raises:
        DataError: The CSV is invalid, or several columns hold images.
    """
    table = CsvTable(file, required=("path",), roles=tables.csv_roles)
    columns = [name for name in table.columns if name]
    records = _read_examples(table)
    texts = {
        name: [values[place] for values in records if place < len(values)]
        for place, name in enumerate(table.columns)
        if name
    }
    given = tables.image_column.casefold()
    if given != AUTO and given not in table.missing_roles:
        return ImageColumnChoice(tables, is_encoded=_hold_images(texts["path"]))
    encoded = [name for name in columns if _hold_images(texts[name])]
    if "path" in encoded:
        return ImageColumnChoice(replace(tables, image_column="path"), is_encoded=True)
    if not encoded:
        if "path" in columns or "image" not in columns:
            return ImageColumnChoice(tables)
        note = f"{file.name}: the images are those that the column 'image' names."
        return ImageColumnChoice(replace(tables, image_column="image"), notes=(note,))
    paths = [path for path in texts.get("path", ()) if path and not find_path_problem(path)]
    if any((file.parent / path).is_file() for path in paths):
        note = (
            f"{file.name}: the images are the files of the column 'path'; for those in base64 set "
            f"data.image_column={encoded[0]}."
        )
        return ImageColumnChoice(tables, notes=(note,))
    if len(encoded) > 1:
        raise DataError(
            f"{file} has several columns of images in base64: {', '.join(encoded)}. Name one, as "
            f"in data.image_column={encoded[0]}."
        )
    note = f"{file.name}: the images are those in base64 in the column '{encoded[0]}'."
    found = replace(tables, image_column=encoded[0])
    return ImageColumnChoice(found, is_encoded=True, notes=(note,))


def _read_examples(table: CsvTable) -> list[list[str]]:
    """Return how the values of the first records begin.

    There are more records where the column of the images, by its name, is empty in all of those.
    """
    usual = next((name for name in ("path", "image") if name in table.columns), None)
    place = len(table.columns) if usual is None else table.columns.index(usual)
    has_image = usual is None
    records: list[list[str]] = []
    for number, (_, values) in enumerate(table):
        if number >= _NUM_EXAMPLES and has_image:
            break
        is_filled = place < len(values) and bool(values[place].strip())
        has_image |= is_filled
        if number < _NUM_EXAMPLES or is_filled:
            records.append([value[:_NUM_START_CHARACTERS].strip() for value in values])
    return records


def decode_image(text: str) -> bytes:
    """Return the bytes of an image in base64, or of a data URL.

    Line breaks, missing padding, the letters of base64url, and the ``b'…'`` of Python around
    it are accepted.

    Raises:
        ValueError: It is neither; the message is the reason.
    """
    text, is_base64 = _strip_frame(text)
    if not is_base64:
        raise ValueError("data URL without ;base64")
    text = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    if other := _OTHER_CHARACTER.search(text):
        raise ValueError(f"not base64 ('{other[0]}' at character {other.start() + 1})")
    if len(text) % 4 == 1:
        raise ValueError(f"base64 is incomplete ({len(text):,} characters)")
    return binascii.a2b_base64(text + "=" * (-len(text) % 4))


def _strip_frame(text: str) -> tuple[str, bool]:
    """Return a text without what precedes the base64, and whether it may be base64."""
    text = text.strip()
    if text[:2] in ("b'", 'b"') and text[-1] == text[1]:
        text = text[2:-1]
    match = _DATA_URL.match(text)
    if match is None:
        return text, True
    return text[match.end() :], (match[2] or "").casefold().endswith(";base64")


def _is_path(text: str) -> bool:
    """Return whether a value is the path of an image file: base64 has no suffix."""
    return (
        "://" not in text
        and not _DATA_URL.match(text)
        and not find_path_problem(text)
        and PurePath(text).suffix.lower() in IMAGE_SUFFIXES
    )


def _hold_images(texts: Sequence[str]) -> bool:
    """Return whether any text begins as an image in base64, which no path does."""
    return any(map(_is_image, texts))


def _is_image(text: str) -> bool:
    """Return whether the start of a value is that of an image in base64."""
    text, is_base64 = _strip_frame(_PYTHON_START.sub("", text).rstrip("'\""))
    start = "".join(text.split())
    if not is_base64 or len(start) < _MIN_LENGTH:
        return False
    try:
        content = decode_image(start[: len(start) // 4 * 4])
    except ValueError:
        return False
    return find_format(identify_content(content[:NUM_START_BYTES])) is not None
