"""Checks that the outputs of a prediction are different files, and none of its inputs."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path

from finetune.data.file_listing import find_rejection_reason
from finetune.data.streams.file_streams import FileStream, FolderStream, PathListStream
from finetune.data.streams.open_stream import JoinedStream
from finetune.data.streams.stream_image import ImageStream
from finetune.data.streams.table_streams import CsvStream, ParquetStream
from finetune.data.streams.tar_stream import TarStream
from finetune.errors import ConfigError


def check_distinct_outputs(outputs: Mapping[str, Path | None]) -> None:
    """Check that no two outputs are one file.

    Args:
        outputs: Files by the names of their options; None for options that are not set.

    Raises:
        ConfigError: Two of them are the same.
    """
    given = [(option, path) for option, path in outputs.items() if path is not None]
    for (option, path), (other, other_path) in combinations(given, 2):
        if _is_same(path, other_path):
            raise ConfigError(
                f"{option} {path} and {other} {other_path} are the same file, of which one would "
                f"replace the other. Give each its own."
            )


def check_no_input(
    outputs: Mapping[str, Path | None], stream: ImageStream, models: Sequence[Path]
) -> None:
    """Check that no output would replace a file that is read.

    Args:
        outputs: Files by the names of their options; None for options that are not set.
        stream: Images.
        models: Models.

    Raises:
        ConfigError: One would.
    """
    for option, path in outputs.items():
        if path is None or not path.is_file():
            continue
        files = chain(models, _list_files(stream, path))
        found = next((file for file in files if _is_same(path, file)), None)
        if found is not None:
            raise ConfigError(
                f"{option} {path} would replace an input of the prediction ({found}). Give the "
                f"path of another file."
            )


def _list_files(stream: ImageStream, output: Path) -> Iterator[Path]:
    """Yield the files that a stream reads, and an output that is an image of its folder."""
    if isinstance(stream, JoinedStream):
        for part in stream.streams:
            yield from _list_files(part, output)
    elif isinstance(stream, FileStream | TarStream):
        yield from stream.files
    elif isinstance(stream, ParquetStream):
        yield from stream.files.files
    elif isinstance(stream, CsvStream | PathListStream):
        yield stream.file
    elif isinstance(stream, FolderStream):
        is_inside = output.resolve().is_relative_to(stream.folder.resolve())
        if is_inside and find_rejection_reason(output) is None:
            yield output


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths are those of one file, which need not exist."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()
