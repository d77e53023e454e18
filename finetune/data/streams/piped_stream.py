"""Images from standard input: paths, one image, or a tar file."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from finetune.data.images.formats import NUM_START_BYTES, find_format, identify_content
from finetune.data.streams.checked_tar import COMPRESSED_STARTS
from finetune.data.streams.file_streams import build_file_image, check_first_path
from finetune.data.streams.path_lines import read_path_lines
from finetune.data.streams.stream_image import StreamImage
from finetune.data.streams.tar_stream import read_tar
from finetune.errors import DataError

_NAME = "standard input"
_TAR_MARK = slice(257, 262)


class PipedStream:
    """Images from a pipe, whose content decides what they are; it can be read once.

    That is paths (one a line, or separated by zero bytes), the content of one image file, or a tar
    file.

    Args:
        stream: Standard input, buffered.
    """

    num_containers = 0
    description = _NAME

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def iterate(self, selects: Callable[[int], bool] | None = None) -> Iterator[StreamImage]:
        """Yield the images.

        Raises:
            DataError: The input is empty, a terminal, or lists addresses.
        """
        del selects
        if self._stream.isatty():
            raise DataError(
                "- reads standard input, which is this terminal. Pipe an image or paths into it, "
                "as in find photos -name '*.jpg' | finetune predict MODEL -"
            )
        start = _read_start(self._stream)
        if not start.strip():
            raise DataError("Standard input is empty. Pipe an image or paths into it.")
        content = identify_content(start[:NUM_START_BYTES])
        if find_format(content) is not None:
            yield StreamImage("-", data=start + self._stream.read())
        elif start[_TAR_MARK] == b"ustar" or start.startswith(COMPRESSED_STARTS):
            yield from read_tar(io.BufferedReader(_JoinedInput(start, self._stream)), "-", None)
        elif content and b"\n" not in start:
            yield StreamImage("-", data=start + self._stream.read())  # for its reason
        else:
            for number, text in enumerate(read_path_lines(self._stream, start)):
                if number == 0:
                    check_first_path(text, self.description)
                yield build_file_image(Path(text), text)

    def count(self) -> int | None:
        """Return None: the input is read once."""
        return None

    def compute_fingerprint(self) -> str:
        """Raise: the input is read once.

        Raises:
            DataError: Always.
        """
        raise DataError(
            "Standard input cannot be divided into shards, as each process reads all of it. Write "
            "the paths to a file, and name it with --list."
        )


class _JoinedInput(io.RawIOBase):
    """Input that continues a start that was read from it before."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start = start
        self._stream = stream

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read the next bytes into a buffer, and return their number."""
        data = self._start[: len(buffer)] or self._stream.read(len(buffer))
        self._start = self._start[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _read_start(stream: BinaryIO) -> bytes:
    """Return the first bytes, by which content is identified, or all of a shorter input.

    A line of paths is returned as soon as it comes, without waiting for further ones.
    """
    start = b""
    while len(start) < NUM_START_BYTES:
        block = stream.read1(1 << 16) if hasattr(stream, "read1") else stream.read(1 << 16)
        start += block
        if not block or (b"\n" in start and _is_text(start) and not identify_content(start)):
            break
    return start


def _is_text(data: bytes) -> bool:
    """Return whether no byte is one that only files of images and archives have."""
    return all(byte >= 32 or byte in b"\t\r\n" for byte in data)
