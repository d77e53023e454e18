"""Streams of the images that a user names, by what each input is."""

import glob
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from finetune.data.file_listing import find_rejection_reason, walk_files
from finetune.data.layouts.parquet.parquet_files import find_parquet_files
from finetune.data.layouts.table_options import DEFAULT_TABLE_OPTIONS, TableOptions
from finetune.data.streams.file_streams import FileStream, FolderStream, PathListStream
from finetune.data.streams.piped_stream import PipedStream
from finetune.data.streams.stream_image import ImageStream, ListDigest, StreamImage
from finetune.data.streams.table_streams import CsvStream, ParquetStream
from finetune.data.streams.tar_stream import TarStream, expand_braces, is_tar_path
from finetune.errors import ConfigError, DataError
from finetune.lookup import explain_missing
from finetune.system.given_paths import exists
from finetune.units import format_count

STANDARD_INPUT = "-"
_MAX_NAMED = 3
_WILDCARD = re.compile(r"[*?\[]")


class JoinedStream:
    """Images of several inputs, one after the other.

    Args:
        streams: Streams of the inputs.
    """

    def __init__(self, streams: Sequence[ImageStream]) -> None:
        self.streams = streams
        self.description = ", ".join(stream.description for stream in streams[:3])
        self.description += f" … ({len(streams)} inputs)" if len(streams) > 3 else ""
        self.num_containers = 0

    def iterate(self, selects: Callable[[int], bool] | None = None) -> Iterator[StreamImage]:
        """Yield the images of each input."""
        del selects
        for stream in self.streams:
            yield from stream.iterate()

    def count(self) -> int | None:
        """Return the number of all images if it is found at once, else None."""
        counts = [stream.count() for stream in self.streams]
        return None if None in counts else sum(count or 0 for count in counts)

    def compute_fingerprint(self) -> str:
        """Return a digest of those of the inputs."""
        digest = ListDigest()
        for stream in self.streams:
            digest.add(stream.compute_fingerprint())
        return digest.compute()


def open_stream(
    inputs: Sequence[Path],
    *,
    lists: Sequence[Path] = (),
    tables: TableOptions = DEFAULT_TABLE_OPTIONS,
) -> ImageStream:
    """Return the stream of the images that inputs hold or list, in their order; lists come last.

    Args:
        inputs: Folders, image files, ``.txt`` files that list paths, CSVs, Parquet files, tar files
            of a WebDataset, patterns for several of these, or ``-`` for standard input.
        lists: Text files that list paths, whatever their names.
        tables: Columns of CSVs and Parquet files.

    Raises:
        ConfigError: A column is named, and no input has columns.
        DataError: An input is missing, or a table has no column of images.
    """
    streams: list[ImageStream] = []
    for _, group in groupby((_open_input(path, tables) for path in inputs), _is_file_stream):
        together = list(group)
        files = [
            file for stream in together if isinstance(stream, FileStream) for file in stream.files
        ]
        # image files that follow each other are one stream: there may be thousands
        streams += [FileStream(files)] if files else together
    for file in lists:
        _check_exists(file)
        streams.append(PathListStream(file))
    if tables.is_strict and tables.named_columns and not any(map(_has_columns, streams)):
        raise ConfigError(
            f"--column {tables.image_column} names a column, but {streams[0].description} has no "
            f"columns. It applies to CSVs and Parquet files; leave it out."
        )
    assert streams, "checked by the caller"
    return streams[0] if len(streams) == 1 else JoinedStream(streams)


def describe_other_files(stream: ImageStream) -> str | None:
    """Return a sentence on the files of folders that are no images by their suffix; None if none.

    Args:
        stream: Stream that was read.
    """
    folders = [s for s in _list_streams(stream) if isinstance(s, FolderStream)]
    count = sum(folder.num_other_files for folder in folders)
    if not count:
        return None
    names = [name for folder in folders for name in folder.other_files][:_MAX_NAMED]
    more = ", …" if count > len(names) else ""
    return (
        f"{format_count(count, 'file')} without an image suffix left out: {', '.join(names)}{more}"
    )


def _list_streams(stream: ImageStream) -> list[ImageStream]:
    if not isinstance(stream, JoinedStream):
        return [stream]
    return [inner for part in stream.streams for inner in _list_streams(part)]


def _is_file_stream(stream: ImageStream) -> bool:
    return isinstance(stream, FileStream)


def _has_columns(stream: ImageStream) -> bool:
    return isinstance(stream, CsvStream | ParquetStream)


def _open_input(path: Path, tables: TableOptions) -> ImageStream:
    """Return the stream of one input.

    Raises:
        DataError: It is missing, or a table without images.
    """
    if str(path) == STANDARD_INPUT:
        return PipedStream(sys.stdin.buffer)
    if is_tar_path(path):
        return _open_tars(path)
    parquet = find_parquet_files(path.absolute(), "none")
    if parquet is not None:
        return ParquetStream(parquet, tables, str(path))
    if not exists(path) and _WILDCARD.search(str(path)):
        names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        if names:
            return open_stream([Path(name) for name in names], tables=tables)
    _check_exists(path)
    if path.is_dir():
        tars = _list_tars(path)
        return TarStream(tars, str(path)) if tars else FolderStream(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return CsvStream(path, tables)
    return PathListStream(path) if suffix in (".txt", ".lst") else FileStream([path])


def _list_tars(folder: Path) -> list[Path]:
    """Return the tar files of a folder that holds no images of its own."""
    files = []
    for file in walk_files(folder):
        if is_tar_path(file):
            files.append(file)
        elif find_rejection_reason(file) is None:
            return []
    return files


def _open_tars(path: Path) -> TarStream:
    """Return the stream of a tar file, or of those that a pattern stands for.

    Raises:
        DataError: One is missing.
    """
    files: list[Path] = []
    for text in [str(path)] if exists(path) else expand_braces(str(path)):
        found = sorted(glob.glob(text, recursive=True)) if _WILDCARD.search(text) else [text]  # noqa: PTH207
        if not found:
            raise DataError(f"No file matches {text}. Check the path.")
        files += map(Path, found)
    for file in files:
        _check_exists(file)
    return TarStream(files, str(path))


def _check_exists(path: Path) -> None:
    if not exists(path):
        raise DataError(explain_missing(path, "Check the path."))
