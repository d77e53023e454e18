"""Reasons for which an image file cannot be used, in plain words."""

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from finetune.data.images.codecs.library_messages import collect_messages
from finetune.data.images.formats import (
    ImageFormat,
    describe_unsupported,
    find_format,
    identify_content,
    list_plugins,
    read_start,
)
from finetune.errors import DataError

_TRUNCATED = re.compile(
    r"truncated|unexpected (end|eof)|premature end|end of (file|data)|not enough|"
    r"requires? a buffer|unpack requires|expecting to read|cannot read this image|"
    r"tile cannot extend|buffer overrun|eof",
    re.IGNORECASE,
)
_CHECKSUM = re.compile(r"checksum|crc|incorrect data check", re.IGNORECASE)

_INTERNAL_ERRORS = (
    TypeError, IndexError, AttributeError, KeyError, AssertionError, OverflowError
)  # fmt: skip
"""Exceptions of a library that did not expect the data; their texts are about its own code."""
_CODE_TEXT = re.compile(r"\w\(\)|broadcast|reshape")
"""Texts of ValueError that are about code, such as "invalid literal for int()"."""


@contextmanager
def translate_read_errors(path: Path) -> Iterator[None]:
    """Translate the exceptions of reading an image file, and gather what libraries print of it.

    Args:
        path: Image file that is read in the block.

    Raises:
        DataError: The file cannot be used; the message is the reason without the path.
    """
    with collect_messages() as messages:
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # plugins raise various exceptions for damaged files
            raise DataError(describe_read_error(path, error, messages)) from error


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Check the number of pixels of an image.

    Raises:
        DataError: The image has more than ``max_pixels`` pixels, or none.
    """
    pixels = width * height
    if pixels == 0:
        raise DataError(f"damaged: its header says {width}x{height} pixels")
    if pixels > max_pixels:
        raise DataError(
            f"too large: {width}x{height} is {pixels / 1e6:.0f} megapixels, over "
            f"data.max_megapixels={max_pixels / 1e6:g}"
        )


def describe_read_error(path: Path, error: Exception, messages: Sequence[str] = ()) -> str:
    """Return the reason for an exception of a library or the system in plain words.

    Args:
        path: File that was read.
        error: Exception.
        messages: What libraries printed while the file was read.
    """
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "not readable (permission denied)"
    if isinstance(error, Image.DecompressionBombError):
        return _describe_bomb(path, error)
    if isinstance(error, MemoryError):
        return "too large: there is not enough memory to read it"
    try:
        start = read_start(path)
    except OSError as unreadable:
        return f"not readable ({unreadable.strerror or unreadable})"
    if not start:
        return "empty file"
    name = identify_content(start)
    found = find_format(name)
    if not name:
        return _describe_unknown(start)
    if found is None or found.plugin not in list_plugins():
        return describe_unsupported(name)
    if isinstance(error, UnidentifiedImageError):
        error = _find_plugin_error(path, found) or error
    return describe_damage(found.name, _get_detail(found.name, error, messages))


def describe_damage(name: str, detail: str) -> str:
    """Return the reason for a damaged file.

    Args:
        name: Name of its format.
        detail: Message of the library that reads it; may be empty.
    """
    if _TRUNCATED.search(detail):
        return f"truncated {name}"
    if _CHECKSUM.search(detail):
        return f"damaged {name}: wrong checksum ({detail})"
    return f"damaged {name} ({detail})" if detail else f"damaged {name}"


def _describe_unknown(start: bytes) -> str:
    if not any(start):
        return "not an image: its first bytes are all zero"
    is_text = all(byte >= 32 or byte in b"\t\r\n\f" for byte in start)
    return f"not an image: {'text' if is_text else 'unrecognised content'}"


def _describe_bomb(path: Path, error: Image.DecompressionBombError) -> str:
    """Return the pixels of a bomb, and Pillow's limit, which its error alone knows."""
    numbers = [int(text) for text in re.findall(r"\d{4,}", str(error))]
    if len(numbers) != 2:
        return "too large: over Pillow's limit of pixels"
    pixels, limit = numbers[0], numbers[1] // 100_000 / 10
    width, height = _find_size(path)
    sides = f"{width}x{height} is " if width * height == pixels else ""
    return f"too large: {sides}{pixels / 1e6:.0f} megapixels, over Pillow's limit of {limit:g}"


def _find_size(path: Path) -> tuple[int, int]:
    """Return the width and height in the header of a file that Pillow refuses; 0 where unknown."""
    with suppress(Exception):  # plugins raise various exceptions
        start = read_start(path)
        found = find_format(identify_content(start))
        if found is not None and found.name == "WebP":  # its plugin compares the size itself
            return _read_webp_size(start)
        if found is not None:
            factory, _ = Image.OPEN[found.plugin]
            with path.open("rb") as file:  # Image.open compares the size after this
                return factory(file, str(path)).size
    return 0, 0


def _read_webp_size(start: bytes) -> tuple[int, int]:
    """Return the width and height of the first chunk (RFC 9649, sections 2.5 to 2.7)."""
    kind = start[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(start[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height
    if kind == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", start[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _find_plugin_error(path: Path, entry: ImageFormat) -> Exception | None:
    """Return why the plugin of a format does not open a file; ``Image.open`` keeps it to itself."""
    factory, _ = Image.OPEN[entry.plugin]
    try:
        with path.open("rb") as file:
            factory(file, str(path))
    except (SyntaxError, IndexError, TypeError, KeyError, ValueError, OSError, EOFError) as error:
        cause = error.__cause__  # Pillow raises SyntaxError from what its plugins raise
        return cause if isinstance(cause, Exception) else error
    except (struct.error, Image.DecompressionBombError) as error:
        return error
    return None


def _get_detail(name: str, error: Exception, messages: Sequence[str]) -> str:
    """Return what is known of the damage, maybe nothing; libtiff says more than its exit code."""
    said = " ".join(str(error).split())
    is_internal = isinstance(error, _INTERNAL_ERRORS) or (
        isinstance(error, ValueError) and _CODE_TEXT.search(said) is not None
    )
    if is_internal or isinstance(error, UnidentifiedImageError):
        said = ""
    if messages and (not said or re.fullmatch(r"(.*decoder error -?\d+|.*unknown.*)", said)):
        said = messages[0].removeprefix("tempfile.tif: ")
    if not said and name == "TIFF" and is_internal:
        return "invalid tags"
    return said.rstrip(". ") or ("end of file" if isinstance(error, EOFError) else "")
