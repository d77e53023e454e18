"""Images of the records of a CSV: files that it lists, or files unpacked from it."""

from collections.abc import Iterator
from pathlib import Path

from finetune.data.cache.eviction import resolve_cache_root
from finetune.data.file_listing import find_rejection_reason
from finetune.data.layouts.csv_files.encoded_images import (
    EncodedTable,
    choose_image_column,
)
from finetune.data.layouts.listed_paths import PathReader
from finetune.data.layouts.table_options import TableOptions
from finetune.data.layouts.unpacked_images import UnpackedImages, UnpackedRow, unpack_images
from finetune.errors import DataError
from finetune.types import Reporter
from finetune.units import shorten_text


class ListedImages:
    """Image files that the records of a CSV name.

    Args:
        file: Absolute path of the CSV.

    Attributes:
        root: Folder that the paths are relative to.
        names: Path of an image to the name that the CSV gives it, where these differ; empty.
    """

    def __init__(self, file: Path) -> None:
        self.root = file.parent
        self.names: dict[str, str] = {}
        self._file = file
        self._reader = PathReader(file)
        self._line_of: dict[str, int] = {}

    @property
    def notes(self) -> list[str]:
        """Lines that say how paths were read."""
        return self._reader.notes

    def read(self, text: str, line: int, where: str) -> tuple[str, str | None]:
        """Return the path of the image of a record, and the reason if it is rejected.

        Args:
            text: Value of the column of the images.
            line: Line on which the record begins.
            where: File and line, for messages.

        Raises:
            DataError: There is no path, an invalid one, or the same one twice.
        """
        if not text:
            raise DataError(f"{where}: path or label is empty. Fill it or drop the line.")
        path = self._reader.parse(text, where)
        if (first := self._line_of.setdefault(self._reader.find_place(path), line)) != line:
            raise DataError(
                f"{self._file}, lines {first} and {line}: duplicate path {shorten_text(path)}. "
                f"Keep one line per "
                f"image."
            )
        return path, find_rejection_reason(self.root / path)


class HeldImages:
    """Images that the records of a CSV hold, unpacked as files.

    Args:
        file: Absolute path of the CSV.
        tables: Columns, that of the images named; and the cache.
        reporter: Receives the progress of unpacking.

    Attributes:
        root: Folder that the paths are relative to.
        names: Path of an image to the name that the CSV gives it, where it has one.

    Raises:
        DataError: The CSV is invalid.
        StorageError: The cache cannot hold the images.
    """

    def __init__(self, file: Path, tables: TableOptions, reporter: Reporter) -> None:
        unpacked = _unpack(file, tables, reporter)
        self.root = unpacked.folder
        self.names: dict[str, str] = {}
        self._folder = file.parent
        self._listed = ListedImages(file)
        self._rows: Iterator[UnpackedRow] = iter(unpacked.rows[0])

    @property
    def notes(self) -> list[str]:
        """Lines that say how paths were read."""
        return self._listed.notes

    def read(self, text: str, line: int, where: str) -> tuple[str, str | None]:
        """Return the path of the image of the next record, and the reason if it is rejected.

        Args:
            text: Value of the column of the images; unused.
            line: Line on which the record begins.
            where: File and line, for messages.

        Raises:
            DataError: A record has a path instead of base64, and it is invalid.
        """
        del text
        row = next(self._rows)
        if row.is_reference:
            path, reason = self._listed.read(row.path, line, where)
            return (self._folder / path).as_posix(), reason
        if not row.path:
            return row.name, row.reason
        if row.name:
            self.names[row.path] = row.name
        return row.path, None


def find_csv_root(file: Path, tables: TableOptions) -> Path:
    """Return the folder that the images of a CSV are relative to.

    That is its own, or that of its unpacked images, which are unpacked again if they were removed
    from the cache.

    Args:
        file: Path of the CSV; it need not exist.
        tables: Names of columns, and the cache.

    Raises:
        DataError: The CSV is invalid.
        StorageError: The cache cannot hold the images.
    """
    if not file.is_file():
        return file.parent
    choice = choose_image_column(file.resolve(), tables)
    if not choice.is_encoded:
        return file.parent
    return _unpack(file.resolve(), choice.tables, Reporter()).folder


def _unpack(file: Path, tables: TableOptions, reporter: Reporter) -> UnpackedImages:
    return unpack_images(
        [EncodedTable(file, tables.image_column)],
        base=file,
        kind="csv",
        root=resolve_cache_root(tables.cache),
        reporter=reporter,
    )
