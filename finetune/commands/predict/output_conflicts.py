"""Checks that the outputs of a prediction are different files, and none of its inputs."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path

from finetune.commands.early_checks.stored_files import check_no_stored_file
from finetune.data.file_listing import find_rejection_reason
from finetune.data.streams.file_streams import FileStream, FolderStream, PathListStream
from finetune.data.streams.open_stream import JoinedStream
from finetune.data.streams.stream_image import ImageStream, StreamImage
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


class OutputGuard:
    """Check that no output would replace a file that is read.

    Images that a stream names by their paths are compared by their file names first, as there may
    be millions of them.

    Args:
        outputs: Files by the names of their options; None for options that are not set.
    """

    def __init__(self, outputs: Mapping[str, Path | None]) -> None:
        self._outputs = {
            option: path
            for option, path in outputs.items()
            if path is not None and path.is_file()  # another one replaces nothing
        }
        self._names = {
            name.casefold()
            for path in self._outputs.values()
            for name in (path.name, path.resolve().name)
        }

    def check_inputs(self, stream: ImageStream, files: Iterable[Path]) -> None:
        """Check the inputs of a prediction, and the images that they list.

        Images that are listed in standard input, or beside others inside of a table, are checked
        by ``check_images`` alone.

        Args:
            stream: Images.
            files: Further files that are read: models and the class prior.

        Raises:
            ConfigError: An output is one of them, or a file of a run, a study or a model.
        """
        if not self._outputs:
            return
        for option, path in self._outputs.items():
            check_no_stored_file(option, path)
        for file in files:
            self._check(file)
        for output in self._outputs.values():
            for file in _list_files(stream, output):
                self._check(file)
        for part in _list_lists(stream):
            for _ in self.check_images(part.iterate()):
                pass

    def check_images(self, images: Iterable[StreamImage]) -> Iterator[StreamImage]:
        """Yield images that no output would replace.

        Raises:
            ConfigError: An output is the file of one.
        """
        for image in images:
            if image.path is not None and image.path.name.casefold() in self._names:
                self._check(image.path)
            yield image

    def _check(self, file: Path) -> None:
        for option, path in self._outputs.items():
            if _is_same(path, file):
                raise ConfigError(
                    f"{option} {path} would replace an input of the prediction ({file}). Give the "
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


def _list_lists(stream: ImageStream) -> Iterator[ImageStream]:
    """Yield the streams of paths, which are read without the images."""
    if isinstance(stream, JoinedStream):
        for part in stream.streams:
            yield from _list_lists(part)
    elif isinstance(stream, PathListStream) or (
        isinstance(stream, CsvStream | ParquetStream) and stream.lists_paths
    ):
        yield stream


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths are those of one file, which need not exist."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()
