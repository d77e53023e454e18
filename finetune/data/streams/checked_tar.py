"""Tar files read to their end, in which damage is an error and no early end."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Self

_DECOMPRESSORS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}

COMPRESSED_STARTS = tuple(_DECOMPRESSORS)
"""First bytes of the compressed files that are read."""


class _CheckedHeader(tarfile.TarInfo):
    """Header of a member, whose damage is an error.

    ``TarFile.next`` takes a damaged, cut or missing header for the end of the file.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return the header in a block; a block of zeros that is cut is one of the end, too."""
        if buf and not any(buf):
            raise tarfile.EOFHeaderError("end of file header")  # type: ignore[attr-defined]
        return super().frombuf(buf, encoding, errors)

    @classmethod
    def fromtarfile(cls, tarfile_: "tarfile.TarFile") -> Self:
        """Return the next header.

        Raises:
            tarfile.ReadError: It is damaged or cut, or the file ends without the mark of its end.
        """
        assert isinstance(tarfile_, _CheckedTarFile)
        try:
            header = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.has_end_mark = True
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if tarfile_.has_end_mark:
                raise
            reason = "the mark of the end is missing" if tarfile_.offset else "empty file"
            raise tarfile.ReadError(reason) from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        tarfile_.has_end_mark = False
        return header


class _CheckedTarFile(tarfile.TarFile):
    """Tar file that is read beyond marks of an end, to those of files that are joined by ``cat``.

    Attributes:
        has_end_mark: Whether the last block was one of zeros.
    """

    ignore_zeros = True
    tarinfo = _CheckedHeader
    has_end_mark = False


def iterate_members(stream: io.BufferedReader) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of a tar file, and of further ones behind its end, with the open tar file.

    Args:
        stream: Tar file, compressed or not, which may be a pipe.

    Raises:
        tarfile.TarError: The file is damaged, or ends without the mark of its end, which all usual
            programs write.
        OSError: It cannot be read, or its compression is damaged; so do ``EOFError``,
            ``ValueError``, ``zlib.error`` and ``lzma.LZMAError``.
    """
    start = stream.peek(max(map(len, _DECOMPRESSORS)))
    content: IO[bytes] = stream
    for mark, decompress in _DECOMPRESSORS.items():
        if start.startswith(mark):
            content = decompress(stream)
    with _CheckedTarFile.open(fileobj=content, mode="r|") as tar:
        while (member := tar.next()) is not None:
            # tarfile keeps a list of all members, which would grow with their number
            tar.members = []  # type: ignore[attr-defined]
            yield tar, member
