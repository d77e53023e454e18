"""The part of the decoded pixels that an image shows: clean apertures and frames on a canvas."""

import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from PIL import Image, ImageFile

_MAX_META_BYTES = 1 << 20
_ROWS_AT_ONCE = 256

Area = tuple[int, int, int, int]
"""Left, top, right, bottom in stored pixels; right and bottom are exclusive."""


def find_frame_area(image: ImageFile.ImageFile) -> Area | None:
    """Return the area of a GIF's first frame where it is smaller than the canvas, else None.

    Viewers show nothing around it. To be called before the pixels are loaded.
    """
    if image.format != "GIF" or not image.tile:
        return None
    extents = image.tile[0][1]
    if extents is None or tuple(extents) == (0, 0, *image.size):
        return None
    left, top, right, bottom = extents
    return left, top, right, bottom


def find_clean_aperture(path: Path, size: tuple[int, int]) -> Area | None:
    """Return the area to which an AVIF file crops its image; None for the whole image.

    The ``clap`` property of the primary item (ISO/IEC 14496-12, 12.1.4.1), which comes before its
    rotation. An area that is invalid or is not of whole pixels is ignored, as by browsers.

    Args:
        path: AVIF file.
        size: Width and height of the decoded image.
    """
    try:
        with path.open("rb") as file:
            clap = _find_clap(file.read(_MAX_META_BYTES))
        return None if clap is None else _to_area(clap, size)
    except (struct.error, IndexError, ZeroDivisionError):
        return None


def paste_on_white(
    image: Image.Image,
    area: Area,
    flatten: Callable[[Image.Image], Image.Image],
    *,
    keeps_opacity: bool = False,
) -> Image.Image:
    """Return an image in RGB, white outside of an area; converted a few rows at a time.

    Args:
        image: Image as stored.
        area: Area that it shows.
        flatten: Function from a part of it to RGB, or to RGBA where opacity is kept.
        keeps_opacity: Whether the result is RGBA, and transparent outside of the area.
    """
    canvas = (
        Image.new("RGBA", image.size) if keeps_opacity else Image.new("RGB", image.size, "white")
    )
    left, top, right, bottom = area
    for first in range(top, bottom, _ROWS_AT_ONCE):
        rows = (left, first, right, min(first + _ROWS_AT_ONCE, bottom))
        canvas.paste(flatten(image.crop(rows)), rows)
    return canvas


def _to_area(clap: bytes, size: tuple[int, int]) -> Area | None:
    values = struct.unpack(">IIIIiIiI", clap[:32])
    width, height, shift_x, shift_y = (
        Fraction(values[at], values[at + 1]) for at in range(0, 8, 2)
    )
    left = shift_x + (size[0] - width) / 2
    top = shift_y + (size[1] - height) / 2
    edges = (left, top, left + width, top + height)
    is_inside = 0 <= left < edges[2] <= size[0] and 0 <= top < edges[3] <= size[1]
    if not is_inside or any(edge.denominator != 1 for edge in edges):
        return None
    area = (int(edges[0]), int(edges[1]), int(edges[2]), int(edges[3]))
    return None if area == (0, 0, *size) else area


def _find_clap(data: bytes) -> bytes | None:
    """Return the content of the ``clap`` property of the primary item."""
    meta = next((body for kind, body in _iter_boxes(data) if kind == b"meta"), b"")[4:]
    boxes = dict(_iter_boxes(meta))
    item_box, properties_box = boxes.get(b"pitm"), boxes.get(b"iprp")
    if item_box is None or properties_box is None:
        return None
    primary = int.from_bytes(item_box[4 : 8 if item_box[0] else 6], "big")
    children = list(_iter_boxes(properties_box))
    containers = (body for kind, body in children if kind == b"ipco")
    properties = list(_iter_boxes(next(containers, b"")))
    for kind, body in children:
        if kind != b"ipma":
            continue
        for index in _iter_associations(body, primary):
            if 0 < index <= len(properties) and properties[index - 1][0] == b"clap":
                return properties[index - 1][1]
    return None


def _iter_associations(body: bytes, primary: int) -> Iterator[int]:
    """Yield the numbers, from 1, of the properties of an item in an ``ipma`` box."""
    version, has_long_indices = body[0], body[3] & 1
    (count,) = struct.unpack_from(">I", body, 4)
    at = 8
    for _ in range(count):
        id_bytes = 4 if version else 2
        item = int.from_bytes(body[at : at + id_bytes], "big")
        number = body[at + id_bytes]
        at += id_bytes + 1
        for _ in range(number):
            if has_long_indices:
                index = int.from_bytes(body[at : at + 2], "big") & 0x7FFF
            else:
                index = body[at] & 0x7F
            at += 2 if has_long_indices else 1
            if item == primary:
                yield index


def _iter_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the content of each box."""
    at = 0
    while at + 8 <= len(data):
        length, header = int.from_bytes(data[at : at + 4], "big"), 8
        kind = data[at + 4 : at + 8]
        if length == 1:
            length, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif length == 0:
            length = len(data) - at
        if length < header:
            return
        yield kind, data[at + header : at + length]
        at += length
