"""Paths of images as tables list them: relative to the table, with the slashes of any system."""

import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from finetune.errors import DataError
from finetune.units import shorten_text

_WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_URL = re.compile(r"[A-Za-z][\w+.-]+://")
_PYTHON_BYTES = re.compile(r"""(\{\s*['"]bytes['"]\s*:\s*)?b(['"]).*?\\x""", re.DOTALL)
"""Start of the bytes of an image, or of a struct of them, as Python writes them as text."""

_MAX_LENGTH, _MAX_NAME_BYTES = 4096, 255
"""Limits of a path in characters, and of a name in bytes, on Linux and macOS."""


def find_path_problem(text: str) -> str:
    """Return why a value of a table can be no path of a file; "" if it can be one."""
    if _PYTHON_BYTES.match(text[:1000]):
        return "Python's text of bytes"
    if "\0" in text:
        return "a text with a zero byte"
    parts = re.split(r"[\\/]", text[: _MAX_LENGTH + 1])
    if len(text) > _MAX_LENGTH or any(len(os.fsencode(p)) > _MAX_NAME_BYTES for p in parts):
        return f"a text of {len(text):,} characters"
    return ""


class PathReader:
    """Reader of the paths in a table, which may have been written on Windows.

    Args:
        file: Absolute path of the CSV or Parquet file.

    Attributes:
        notes: Lines that say how paths were read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        # many images are in a folder
        self._resolve: Callable[[Path], str] = lru_cache(maxsize=10_000)(os.path.realpath)
        self.notes: list[str] = []

    def parse(self, text: str, where: str) -> str:
        """Return a path with slashes, relative to the table's folder unless it lies outside.

        Raises:
            DataError: It is an address, a path with a drive of Windows, or no path.
        """
        folder = self._file.parent
        if problem := find_path_problem(text):
            raise DataError(
                f"{where}: '{shorten_text(text, 40)}' is {problem}, and neither a path nor an "
                f"image file in base64. Write image files in base64, or their paths."
            )
        if _URL.match(text):
            raise DataError(
                f"{where}: {shorten_text(text)} is an address. Download the files, and give paths."
            )
        if "\\" in text or _WINDOWS_ROOT.match(text):
            text = self._convert_windows_path(text, where)
        image = self._shorten(Path(text))
        if image.is_relative_to(folder):
            image = image.relative_to(folder)
        return image.as_posix()

    def find_place(self, path: str) -> str:
        """Return a path that is the same for all ways to write a path that was read."""
        return self._shorten(self._file.parent / path).as_posix() if ".." in path else path

    def _shorten(self, image: Path) -> Path:
        """Return a path without parts that '..' cancels; where a link is among them, as given."""
        if ".." not in image.parts:
            return image
        folder = self._file.parent
        full = Path(os.path.normpath(folder / image))
        if self._resolve(folder / image.parent) != self._resolve(full.parent):
            return image
        if image.is_absolute() or full.is_relative_to(folder):
            return full
        return Path(os.path.normpath(image))

    def _convert_windows_path(self, text: str, where: str) -> str:
        folder = self._file.parent
        if (folder / text).exists():  # a backslash is a letter of a file name here
            return text
        path = text.replace("\\", "/")
        if _WINDOWS_ROOT.match(text):
            parts = path.split("/")
            tails = ("/".join(parts[start:]) for start in range(1, len(parts)))
            tail = next((t for t in tails if t and (folder / t).is_file()), None)
            hint = f" {tail} exists there." if tail else ""
            raise DataError(
                f"{where}: {shorten_text(text)} is a path of Windows. Write paths with "
                f"slashes, relative to "
                f"{folder}.{hint}"
            )
        note = f"{self._file.name} has paths of Windows: backslashes are read as slashes."
        if note not in self.notes:
            self.notes.append(note)
        return path
