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
    rest = start.removeprefix(_BYTE_ORDER_MARK)
    separator = b"\0" if b"\0" in rest else None
    is_first = not start
    while True:
        block = stream.read1(_BLOCK_SIZE) if hasattr(stream, "read1") else stream.read(_BLOCK_SIZE)
        if is_first:
            block, is_first = block.removeprefix(_BYTE_ORDER_MARK), False
        if separator is None:
            separator = b"\0" if b"\0" in block else b"\n" if b"\n" in rest + block else None
        rest += block
        *lines, rest = rest.split(separator) if separator else [rest]
        yield from _decode_lines(lines, separator)
        if not block:
            yield from _decode_lines([rest], separator)
            return


def _decode_lines(lines: list[bytes], separator: bytes | None) -> Iterator[str]:
    for line in lines:
        text = line if separator == b"\0" else line.rstrip(b"\r")
        if text.strip():
            yield os.fsdecode(text)
