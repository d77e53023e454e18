"""Images of tables: files that a CSV or Parquet file lists, or images inside of it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from finetune.data.layouts.csv_files.csv_records import CsvTable
from finetune.data.layouts.csv_files.encoded_images import EncodedTable
from finetune.data.layouts.csv_files.encoded_images import (
    choose_image_column as choose_csv_column,
)
from finetune.data.layouts.image_table import TableImage
from finetune.data.layouts.listed_paths import PathReader
from finetune.data.layouts.parquet.parquet_columns import (
    choose_image_column as choose_parquet_column,
)
from finetune.data.layouts.parquet.parquet_files import ParquetFiles, open_parquet
from finetune.data.layouts.parquet.parquet_images import ParquetTable
from finetune.data.layouts.table_options import AUTO, PATH_COLUMNS, TableOptions
from finetune.data.streams.file_streams import ADDRESS_REASON, check_first_path, is_address
from finetune.data.streams.stream_image import ListDigest, StreamImage
from finetune.errors import DataError
from finetune.lookup import suggest_name


class CsvStream:
    """Images that the records of a CSV list as paths, or hold in base64.

    Relative paths refer to the folder of the CSV.

    Args:
        file: CSV.
        tables: Columns.
    """

    num_containers = 0

    def __init__(self, file: Path, tables: TableOptions) -> None:
        self.file = file.absolute()
        self.description = str(file)
        choice = choose_csv_column(self.file, tables)
        self._encoded = None
        if choice.is_encoded:
            self._encoded = EncodedTable(self.file, choice.tables.image_column)
            return
        self._table = CsvTable(self.file, required=("path",), roles=choice.tables.csv_roles)
        if tables.is_strict and tables.image_column != AUTO and self._table.missing_roles:
            raise DataError(
                f"{file} has no column '{tables.image_column}'."
                f"{suggest_name(tables.image_column, self._table.read_names())} Name the column of "
                f"the images with --column."
            )
        usual = [name for name in (*PATH_COLUMNS, "image") if name in self._table.columns]
        if not usual:
            found = ", ".join(self._table.read_names()) or "none"
            raise DataError(
                f"{file} has no column 'path' (found: {found}). Name the column with the paths of "
                f"the images with --column. A list of paths without a header is read from a .txt "
                f"file, or with --list."
            )
        self._place = self._table.columns.index(usual[0])

    @property
    def lists_paths(self) -> bool:
        """Whether the records are paths of files."""
        return self._encoded is None

    def iterate(self, selects: Callable[[int], bool] | None = None) -> Iterator[StreamImage]:
        """Yield the images.

        Raises:
            DataError: The CSV is invalid, or has no record.
        """
        del selects
        reader = PathReader(self.file)
        is_empty = True
        if self._encoded is not None:
            for image in self._encoded.read_images():
                is_empty = False
                yield _to_stream_image(image, self.file, f"{self.file.name}/{image.row}", reader)
        else:
            for line, values in self._table:
                text = values[self._place].strip() if self._place < len(values) else ""
                if is_empty:
                    check_first_path(text, self.description)
                is_empty = False
                if not text:
                    yield StreamImage(
                        f"{self.file.name}/line{line:05}", reason="no path in this row"
                    )
                    continue
                yield _refer(text, text, self.file, reader)
        if is_empty:
            raise DataError(
                f"{self.description} lists no image: it has no record below the header."
            )

    def count(self) -> int | None:
        """Return None for images inside of the CSV, else the number of lines below the header."""
        return None if self._encoded is not None else max(0, self._table.num_lines - 2)

    def compute_fingerprint(self) -> str:
        """Return a digest of the names of the images; of the CSV itself if it holds the images."""
        digest = ListDigest()
        if self._encoded is not None:
            state = self.file.stat()
            digest.add(state.st_size, state.st_mtime_ns)
            return digest.compute()
        for _, values in self._table:
            digest.add(values[self._place] if self._place < len(values) else "")
        return digest.compute()


class ParquetStream:
    """Images of Parquet files, as the hub stores data sets, or files that these list.

    Args:
        files: Parquet files.
        tables: Columns.
        description: What the user gave, for messages.
    """

    def __init__(self, files: ParquetFiles, tables: TableOptions, description: str) -> None:
        self.files = files
        self.description = description
        self.num_containers = len(files.files)
        self._columns = []
        self._num_rows = 0
        for file in files.files:
            with open_parquet(file) as opened:
                schema = opened.schema_arrow
                name = tables.image_column
                if tables.is_strict and name != AUTO and name not in schema.names:
                    raise DataError(
                        f"{file} has no column '{name}'.{suggest_name(name, schema.names)} Name "
                        f"the column of the images with --column."
                    )
                self._columns.append(choose_parquet_column(file, schema, tables))
                self._num_rows += opened.metadata.num_rows

    @property
    def lists_paths(self) -> bool:
        """Whether the rows of all files are paths of files."""
        return all(column.kind == "path" for column in self._columns)

    def iterate(self, selects: Callable[[int], bool] | None = None) -> Iterator[StreamImage]:
        """Yield the images, file by file.

        Raises:
            DataError: There is no row.
        """
        if not self._num_rows:
            raise DataError(f"{self.description} contains no image: it has no row. Check the path.")
        files = zip(self.files.files, self.files.names, self._columns, strict=True)
        for number, (file, name, column) in enumerate(files):
            if selects is not None and not selects(number):
                continue
            reader = PathReader(file)
            table = ParquetTable(file, name, column.name)
            try:
                for image in table.read_images():
                    shown = f"{name}/{image.row}"
                    if column.kind == "path" and isinstance(image.content, str):
                        image = TableImage(image.row, None, image.content)
                    yield _to_stream_image(image, file, shown, reader, container=number)
            except DataError as error:
                cause = error.__cause__
                is_io_error = isinstance(cause, OSError) and cause.errno is not None
                reason = str(error).rstrip(".")
                yield StreamImage(name, reason=reason, container=number, is_io_error=is_io_error)

    def count(self) -> int | None:
        """Return the number of rows."""
        return self._num_rows

    def compute_fingerprint(self) -> str:
        """Return a digest of the names, sizes and times of the files."""
        digest = ListDigest()
        for file, name in zip(self.files.files, self.files.names, strict=True):
            state = file.stat()
            digest.add(name, state.st_size, state.st_mtime_ns)
        return digest.compute()


def _to_stream_image(
    image: TableImage, file: Path, name: str, reader: PathReader, *, container: int | None = None
) -> StreamImage:
    """Return the image of a row, which may be a file that the row names."""
    if image.content:
        return StreamImage(name, data=image.content, container=container)
    if image.reason or image.content is not None or not image.given:
        reason = image.reason or ("no image in this row" if image.content is None else "empty file")
        return StreamImage(name, reason=reason, container=container)
    full = os.path.normpath(file.parent / image.given)
    return _refer(image.given, full, file, reader, container=container)


def _refer(
    text: str, name: str, file: Path, reader: PathReader, *, container: int | None = None
) -> StreamImage:
    """Return the image of a path in a table."""
    if is_address(text):
        return StreamImage(text, reason=ADDRESS_REASON, container=container)
    try:
        path = file.parent / reader.parse(text, file.name)
    except DataError as error:
        reason = str(error).removeprefix(f"{file.name}: ").rstrip(".")
        return StreamImage(text, reason=reason, container=container)
    return StreamImage(name, path, container=container)
