"""Records of a CSV with the lines on which they begin, whatever its separator and encoding."""

import codecs
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from finetune.data.images.formats import IMAGE_SUFFIXES
from finetune.data.layouts.class_names import normalize_class_name
from finetune.errors import DataError
from finetune.units import shorten_text

Record = tuple[int, list[str]]
"""Line on which a record begins, from 1, and its values."""

NOT_USED = " (not used)"
"""End of the name that a column is read as where another one has its role."""

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig", ""),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_BLOCK_SIZE = 1 << 20
_MAX_VALUE_LENGTH = (1 << 31) - 1
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')
"""First line by which Excel is told the separator."""


class CsvTable:
    """Table of a CSV: its columns, and its records one after the other.

    Args:
        file: CSV in UTF-8, or in UTF-16 with a byte order mark.
        required: Columns by which the separator is recognised.
        single_line: Columns whose values have no line break.
        roles: Lower-case name of a column to the name that it is read as; another column of that
            name is not used.

    Attributes:
        columns: Names that the columns are read as, in lower case.
        missing_roles: Columns of ``roles`` that the table does not have.
        notes: Lines that say which separator or encoding was found.
        num_lines: Number of lines of the file.

    Raises:
        DataError: The file is in another encoding, or two columns have the same name.
    """

    def __init__(
        self,
        file: Path,
        *,
        required: Sequence[str],
        single_line: Sequence[str] = (),
        roles: Mapping[str, str] | None = None,
    ) -> None:
        self._file = file
        self._roles = roles or {}
        self._single_line = single_line
        self.columns: list[str] = []
        self.missing_roles: list[str] = []
        self.notes: list[str] = []
        self._encoding, shown, self.num_lines = _check_encoding(file)
        if shown:
            self.notes.append(f"{file.name} is read as {shown}.")
        self._separator, self._first_line = ",", 0
        first = next(_iter_lines(file, self._encoding, ",", skip=0), "")
        if match := _SEPARATOR_LINE.fullmatch(first.partition("\n")[0]):
            self._separator, self._first_line = match[1], 1
        self._separator = self._find_separator(required)
        line, self.columns = self._read_header(self._separator)
        if self._separator != ",":
            shown = _SEPARATORS.get(self._separator, f"'{self._separator}'")
            self.notes.append(f"{file.name} is separated by {shown}.")
        self._check_columns(line)

    def __iter__(self) -> Iterator[Record]:
        """Yield the records below the header, without empty ones.

        Raises:
            DataError: A quotation mark joins lines, or a record has more values than columns.
        """
        records = self._iter_records(self._separator)
        next(records, None)
        for line, values in records:
            surplus = [value for value in values[len(self.columns) :] if value.strip()]
            if surplus:
                raise DataError(
                    f"{self._file}, line {line}: more values than the {len(self.columns)} columns: "
                    f"'{shorten_text(surplus[0].strip())}' is left over. Put a value with a "
                    f"separator in it in "
                    f"quotation marks, or remove what is left over."
                )
            yield line, values

    def read_names(self) -> list[str]:
        """Return the names of the columns as they are written, without surrounding blanks."""
        _, values = next(self._iter_records(self._separator), (1, []))
        return [normalize_class_name(value) for value in values]

    def _find_separator(self, required: Sequence[str]) -> str:
        """Return the separator by which the header has the required columns.

        If there is none, the separator is returned that divides the header into most columns.
        """
        headers = {}
        for separator in (self._separator, *_SEPARATORS):
            with suppress(DataError):  # with another separator, quotes may end within a value
                headers[separator] = self._read_header(separator)
        fitting = (s for s, (_, columns) in headers.items() if set(required) <= set(columns))
        most = max(headers, key=lambda s: len(headers[s][1]), default=self._separator)
        return next(fitting, most)

    def _read_header(self, separator: str) -> tuple[int, list[str]]:
        """Return the line and the columns of the header; 1 and none in an empty file."""
        line, values = next(self._iter_records(separator), (1, []))
        return line, self._assign_roles(values)

    def _assign_roles(self, values: Sequence[str]) -> list[str]:
        """Return the names that the columns of a header are read as."""
        names = [normalize_class_name(value).lower() for value in values]
        self.missing_roles = [name for name in self._roles if name not in names]
        taken = {self._roles[name] for name in names if name in self._roles}
        if "label" in taken:
            taken.add("labels")
        return [
            self._roles.get(name, f"{name}{NOT_USED}" if name in taken else name) for name in names
        ]

    def _iter_records(self, separator: str) -> Iterator[Record]:
        """Yield the records that are not empty, the header first."""
        # the limit is one of the process; images in base64 are larger than the default of 131,072
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_VALUE_LENGTH))
        lines = _iter_lines(self._file, self._encoding, separator, skip=self._first_line)
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        begin = self._first_line + 1
        try:
            for values in reader:
                end = self._first_line + reader.line_num
                if any(value.strip() for value in values):
                    self._check_joined_lines(values, separator, begin, end)
                    yield begin, values
                begin = end + 1
        except csv.Error as error:
            end = self._first_line + reader.line_num
            raise DataError(self._describe_quote(begin, end)) from error

    def _check_joined_lines(
        self, values: Sequence[str], separator: str, begin: int, end: int
    ) -> None:
        """Raise DataError if a quoted value contains, or may contain, parts of further records."""
        if end == begin:
            return
        for value in values:
            joined = value.splitlines()[1:]
            is_record = any(line.count(separator) >= max(1, len(values) - 1) for line in joined)
            # a mark in one line and a mark in the next join them at any column: the value then has
            # as many separators as a record, though no line of it has
            is_divided = value.count(separator) >= max(1, len(self.columns) - 1)
            if is_record or (is_divided and _names_image(joined, separator)):
                raise DataError(self._describe_quote(begin, end))
        for name, value in zip(self.columns, values, strict=False):
            if name in self._single_line and len(value.strip().splitlines()) > 1:
                raise DataError(
                    f"{self._file}, line {begin}: a quotation mark joins it with the lines to "
                    f"{end}, so that the {name} has a line break. Remove the mark or the line "
                    f"break."
                )

    def _describe_quote(self, begin: int, end: int) -> str:
        upto = f", which joins it with the lines to {end}" if end > begin else ""
        return (
            f"{self._file}, line {begin}: a quotation mark is not closed properly{upto}. Remove "
            f"it; a mark within a quoted value is doubled."
        )

    def _check_columns(self, line: int) -> None:
        named = [name for name in self.columns if name]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            _, values = next(self._iter_records(self._separator))
            pairs = zip(self._assign_roles(values), values, strict=True)
            same = [value.strip() for name, value in pairs if name == twice]
            shown = " and ".join(f"'{value}'" for value in same)
            raise DataError(
                f"{self._file}, line {line}: the columns {shown} have the same name. Keep one of "
                f"them, or rename the others."
            )


def _names_image(lines: Sequence[str], separator: str) -> bool:
    """Return whether a value in lines of a CSV is the name of an image file."""
    values = (value.strip(' "') for line in lines for value in line.split(separator))
    return any(PurePath(value).suffix.lower() in IMAGE_SUFFIXES for value in values)


def _check_encoding(file: Path) -> tuple[str, str, int]:
    """Return the encoding of a file, its name if it is not UTF-8, and the number of lines.

    The file is read in blocks: with images inside it may be larger than the memory.

    Raises:
        DataError: It is in another encoding.
    """
    with file.open("rb") as stream:
        data = stream.read(_BLOCK_SIZE)
        marked = ((encoding, name) for mark, encoding, name in _ENCODINGS if data.startswith(mark))
        encoding, name = next(marked, ("utf-8", ""))
        if not name and b"\0" in data[:1000]:
            raise DataError(
                f"{file} is not in UTF-8 but probably in UTF-16, as it has zero bytes. Save it as "
                f"CSV in UTF-8."
            )
        decoder = codecs.getincrementaldecoder(encoding)()
        num_breaks = 0
        try:
            while data:
                decoder.decode(data)
                num_breaks += data.count(b"\n")
                data = stream.read(_BLOCK_SIZE)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            if name:
                raise DataError(f"{file} is damaged: {error}. Save it as CSV in UTF-8.") from error
            line = num_breaks + error.object.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{file} is not in UTF-8 (line {line}, byte 0x{error.object[error.start]:02x}) but "
                f"probably in Windows-1252, as spreadsheets save CSVs. Save it as CSV in UTF-8."
            ) from error
    return encoding, name, num_breaks + 1


def _iter_lines(file: Path, encoding: str, separator: str, *, skip: int) -> Iterator[str]:
    """Yield the lines of a file, without blanks between a closing quote and a separator."""
    mark = re.escape(separator)
    blanks = re.compile(rf'(?<!")"[ ]+(?={mark}|\r?\n?$)')
    with file.open(encoding=encoding, newline="") as stream:
        for number, line in enumerate(stream):
            if number >= skip:
                yield blanks.sub('"', line) if '" ' in line else line
