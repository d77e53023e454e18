"""Streams of image files: those below a folder, and those that are listed one by one."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from finetune.data.file_listing import (
    escape_path,
    find_rejection_reason,
    has_image_suffix,
    walk_files,
)
from finetune.data.streams.path_lines import read_path_lines
from finetune.data.streams.stream_image import ListDigest, StreamImage
from finetune.errors import DataError
from finetune.units import format_count, shorten_text

_MAX_COUNTED = 100_000
"""Files of a folder up to which they are counted before they are read."""

_MAX_NAMED = 3
"""Other files of a folder that a note names."""

ADDRESS_REASON = "an address: download the image, and give the path of the file"
"""Reason of an image that is named by an address."""

_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+://")


class FolderStream:
    """Images below a folder, in the order of ``walk_files``; their suffix tells which these are.

    Args:
        folder: Folder, searched recursively.

    Attributes:
        other_files: First names of the files without an image suffix, which were passed over; set
            by ``iterate``.
        num_other_files: Number of these files.
    """

    num_containers = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description = str(folder)
        self.other_files: list[str] = []
        self.num_other_files = 0

    def iterate(self, selects: Callable[[int], bool] | None = None) -> Iterator[StreamImage]:
        """Yield the images, also those whose name or kind is refused, with the reason.

        Raises:
            DataError: The folder cannot be listed, or holds no image.
        """
        del selects
        num_images = num_refused = self.num_other_files = 0
        self.other_files = []
        for file in walk_files(self.folder):
            reason = find_rejection_reason(file)
            if reason is None:
                num_images += 1
                yield StreamImage(str(file), file, root=str(self.folder))
            elif reason and has_image_suffix(file):
                num_refused += 1
                yield StreamImage(escape_path(file), reason=reason)
            elif reason:
                self.num_other_files += 1
                if len(self.other_files) < _MAX_NAMED:
                    self.other_files.append(escape_path(file.relative_to(self.folder)))
        if not num_images:
            others = format_count(num_refused + self.num_other_files, "other file")
            raise DataError(f"{self.folder} contains no image ({others}). Check the path.")

    def count(self) -> int | None:
        """Return the number of images in a folder of moderate size, else None."""
        files = list(islice(walk_files(self.folder), _MAX_COUNTED + 1))
        return None if len(files) > _MAX_COUNTED else sum(map(_is_image, files))

    def compute_fingerprint(self) -> str:
        """Return a digest of the names of the images."""
        digest = ListDigest()
        for file in filter(_is_image, walk_files(self.folder)):
            digest.add(file)
        return digest.compute()


class FileStream:
    """Image files that are given by themselves; their content alone decides the format.

    Args:
        files: Image files.
    """

    num_containers = 0

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.description = str(files[0])

    def iterate(self, selects: Callable[[int], bool] | None = None) -> Iterator[StreamImage]:
        """Yield the images."""
        del selects
        for file in self.files:
            yield build_file_image(file, str(file))

    def count(self) -> int | None:
        """Return the number of files."""
        return len(self.files)

    def compute_fingerprint(self) -> str:
        """Return a digest of the names."""
        digest = ListDigest()
        for file in self.files:
            digest.add(file)
        return digest.compute()


class PathListStream:
    """Image files whose paths a text file lists: one a line, or separated by zero bytes.

    Relative paths refer to the current folder; if the first one does not exist there, all of them
    refer to the folder of the list.

    Args:
        file: Text file.
    """

    num_containers = 0

    def __init__(self, file: Path) -> None:
        self.file = file
        self.description = str(file)

    def iterate(self, selects: Callable[[int], bool] | None = None) -> Iterator[StreamImage]:
        """Yield the images.

        Raises:
            DataError: The list is empty, or holds addresses or no paths.
        """
        del selects
        folder: Path | None = None
        for text in self._read():
            if folder is None:
                check_first_path(text, self.description)
                is_here = Path(text).exists() or not (self.file.parent / text).exists()
                folder = Path() if is_here else self.file.parent
            yield build_file_image(folder / text, text)
        if folder is None:
            raise DataError(f"{self.file} lists no path. Write one path a line.")

    def count(self) -> int | None:
        """Return the number of paths."""
        return sum(1 for _ in self._read())

    def compute_fingerprint(self) -> str:
        """Return a digest of the paths."""
        digest = ListDigest()
        for text in self._read():
            digest.add(text)
        return digest.compute()

    def _read(self) -> Iterator[str]:
        try:
            with self.file.open("rb") as stream:
                yield from read_path_lines(stream)
        except OSError as error:
            raise DataError(f"{self.file} cannot be read: {error.strerror}.") from error


def _is_image(file: Path) -> bool:
    """Return whether a stream of a folder has an image for this file, readable or not."""
    return has_image_suffix(file) and find_rejection_reason(file) != ""


def build_file_image(path: Path, name: str) -> StreamImage:
    """Return the image of a path that a user gave, with its name in predictions."""
    if is_address(name):
        return StreamImage(name, reason=ADDRESS_REASON)
    try:
        name.encode()
    except UnicodeEncodeError:
        return StreamImage(escape_path(Path(name)), reason="name is not UTF-8, rename it")
    return StreamImage(name, path)


def is_address(text: str) -> bool:
    """Return whether a text is an address, as ``https://host/a.jpg``, and no path."""
    return _ADDRESS.match(text) is not None


def check_first_path(text: str, description: str) -> None:
    """Check that the first line of a list is a path of a file.

    Raises:
        DataError: It is an address.
    """
    if is_address(text):
        raise DataError(
            f"{description} lists addresses, such as {shorten_text(text)}. Download the images, "
            f"and list the paths of the files."
        )
