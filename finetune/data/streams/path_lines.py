"""Paths in a text: one a line, or separated by zero bytes as ``find -print0`` writes them."""

import os
from collections.abc import Iterator
from typing import BinaryIO

_BLOCK_SIZE = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_path_lines(stream: BinaryIO, start: bytes = b"") -> Iterator[str]:
    """Yield the paths in a text, without empty ones; they need not be valid Unicode.

    A zero byte in the first 64 kB means that zero bytes separate the paths.

    Args:
        stream: Text, which may be a pipe.
        start: Beginning of the text that was read from the stream before.
    """
    rest = start
    separator = b"\0" if b"\0" in rest else None
    mark = _BYTE_ORDER_MARK
    while True:
        block = stream.read1(_BLOCK_SIZE) if hasattr(stream, "read1") else stream.read(_BLOCK_SIZE)
        rest += block
        if separator is None and (b"\0" in rest or b"\n" in rest):
            separator = b"\0" if b"\0" in rest else b"\n"
        *lines, rest = rest.split(separator) if separator and block else [rest]
        if not block:
            lines, rest = rest.split(separator) if separator else [rest], b""
        for line in lines:
            text = line.removeprefix(mark)
            mark = b""
            text = text if separator == b"\0" else text.rstrip(b"\r")
            if text.strip():
                yield os.fsdecode(text)
        if not block:
            return
