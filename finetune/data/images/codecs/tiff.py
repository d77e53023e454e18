"""Reading of TIFF files whose layout Pillow misreads or does not know.

tifffile reads the header, ``tiff_segments`` the pixels. Files with a compression that neither it
nor Pillow knows are decoded by imagecodecs if it is installed.
"""

import importlib.util
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.bit_depth import (
    DecodedImage,
    SampleConverter,
    allocate_pixels,
    choose_opacity_ranges,
    choose_range,
    composite_on_white,
)
from finetune.data.images.codecs.tiff_layout import (
    PALETTE,
    SEPARATED,
    WHITE_IS_ZERO,
    TiffLayout,
    build_segment_format,
    describe_compression,
    is_left_to_pillow,
    read_color_map,
    read_layout,
)
from finetune.data.images.codecs.tiff_segments import (
    DECODED_COMPRESSIONS,
    JPEG,
    iter_row_chunks,
)
from finetune.data.images.read_errors import check_size
from finetune.data.images.resample import Pixels
from finetune.errors import DataError
from finetune.types import ReadOptions

if TYPE_CHECKING:
    from tifffile import TiffPage

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class _Block:
    """Rectangle of samples, shape (rows, columns, samples from ``first_sample`` on)."""

    top: int
    left: int
    first_sample: int
    samples: NDArray[Any]


def has_imagecodecs() -> bool:
    """Return whether imagecodecs is installed, with which tifffile decodes further compressions."""
    return importlib.util.find_spec("imagecodecs") is not None


def is_tiff(start: bytes) -> bool:
    """Return whether a file with these first bytes is a TIFF."""
    return start.startswith(_SIGNATURES)


def read_tiff(path: Path, options: ReadOptions) -> DecodedImage | None:
    """Return the first image of a TIFF file; None for a layout that Pillow reads right.

    Args:
        path: TIFF file.
        options: Limit of pixels, and range of values.

    Raises:
        DataError: The layout or the values are not supported, or the image is too large.
        Exception: The data are damaged; various, as libraries raise them.
    """
    with path.open("rb") as file:
        page = open_first_page(file)
        if is_left_to_pillow(page):
            return None
        layout = read_layout(page)
        check_size(layout.width, layout.height, options.max_pixels)
        decoded = _decode(file, page, layout, options)
        white = layout.samples.white
        if white is None:
            return decoded
        if decoded.max_value <= white:
            return replace(decoded, max_value=0)
        # the statement is wrong
        unstated = replace(layout, samples=replace(layout.samples, white=None))
        return _decode(file, page, unstated, options)


def open_first_page(file: BinaryIO) -> "TiffPage":
    """Return the first page.

    Raises:
        DataError: The file ends before its first directory.
        Exception: The header is damaged; various, as tifffile raises them.
    """
    import tifffile  # not needed by data sets without TIFF files

    # its messages name no file, and what matters raises
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    if _find_directory(file) >= file.seek(0, io.SEEK_END):
        raise DataError("truncated TIFF")
    file.seek(0)
    page = tifffile.TiffFile(file).pages.first
    assert isinstance(page, tifffile.TiffPage)
    return page


def _find_directory(file: BinaryIO) -> int:
    """Return the position of the first directory that the header of a TIFF names."""
    header = file.read(16)
    order: Literal["little", "big"] = "little" if header[:1] == b"I" else "big"
    is_big = 43 in (header[2], header[3])
    return int.from_bytes(header[8:16] if is_big else header[4:8], order)


def _decode(
    file: BinaryIO, page: "TiffPage", layout: TiffLayout, options: ReadOptions
) -> DecodedImage:
    """Return the image with its alpha composited on white, or as a fourth channel."""
    samples, num_colors, pixel_range = layout.samples, layout.num_colors, options.pixel_range
    depth = options.bit_depth
    is_palette = layout.photometric == PALETTE
    color_map = read_color_map(page) if is_palette else None
    colors = SampleConverter(samples, choose_range(samples, pixel_range), bit_depth=depth)
    ranges = () if layout.alpha is None else choose_opacity_ranges(samples, pixel_range)
    pixels = allocate_pixels(
        layout.height,
        layout.width,
        max(3 + options.keeps_opacity, num_colors),
        working_bytes=len(ranges) * depth // 8,
        bit_depth=depth,
    )
    opacities = [
        (
            choice,
            SampleConverter(samples, choice, bit_depth=depth),
            np.zeros(pixels.shape[:2], pixels.dtype),
        )
        for choice in ranges
    ]
    for block in iter_blocks(file, page, layout):
        top, left, first = block.top, block.left, block.first_sample
        inside = block.samples[: layout.height - top, : layout.width - left]
        area = slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1])
        for sample, plane in enumerate(np.moveaxis(inside, 2, 0), first):
            if color_map is not None and sample == 0:
                entries = color_map[np.minimum(plane, len(color_map) - 1)]
                pixels[(*area, slice(3))] = (
                    entries if depth == 8 else entries.astype(np.uint16) * 257
                )
            elif sample < num_colors:
                pixels[(*area, sample)] = colors.convert(plane)
            elif sample == layout.alpha:
                for _, opacity, part in opacities:
                    part[area] = opacity.convert(plane)
    colors.check()
    fitting = [part for choice, opacity, part in opacities if opacity.max_value <= choice.high]
    alpha = (fitting or [opacities[-1][2]])[0] if opacities else None
    _finish_colors(pixels, alpha, layout, keeps_opacity=options.keeps_opacity)
    is_measured = samples.num_bits == 16 and samples.dtype.kind == "u" and not is_palette
    return DecodedImage(
        pixels=pixels[..., : 3 + options.keeps_opacity],
        orientation=layout.orientation,
        mode=layout.mode,
        max_value=int(colors.max_value) if is_measured else 0,
        is_clipped=colors.is_clipped,
    )


def _finish_colors(
    pixels: Pixels, alpha: Pixels | None, layout: TiffLayout, *, keeps_opacity: bool
) -> None:
    """Turn the samples of each pixel into RGB in place, a few rows at a time.

    Where opacity is kept, it becomes the fourth channel.
    """
    white = np.iinfo(pixels.dtype).max
    for first in range(0, layout.height, _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        part = pixels[rows]
        if layout.photometric == WHITE_IS_ZERO:
            part[..., 0] = white - part[..., 0]
        if layout.photometric == SEPARATED:
            part[..., :3] = _convert_cmyk(part[..., :4])
        elif layout.num_colors == 1 and layout.photometric != PALETTE:
            part[..., 1:3] = part[..., :1]
        if keeps_opacity:
            part[..., 3] = white if alpha is None else alpha[rows]
        elif alpha is not None:
            part[..., :3] = composite_on_white(
                part[..., :3], alpha[rows], is_premultiplied=layout.is_premultiplied
            )


def _convert_cmyk(part: Pixels) -> Pixels:
    """Return CMYK as RGB of the same type; Pillow's conversion has 8 bits."""
    if part.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(part), "CMYK").convert("RGB"))
    light = 65_535 - part.astype(np.uint64)
    return np.asarray(light[..., :3] * light[..., 3:] // 65_535, np.uint16)


def iter_blocks(file: BinaryIO, page: "TiffPage", layout: TiffLayout) -> Iterator[_Block]:
    """Yield all samples of an image, each rectangle in native byte order.

    Raises:
        DataError: The compression is not supported, or strips or tiles are missing.
    """
    is_jpeg_plane = layout.compression == JPEG and (layout.is_planar or layout.num_samples == 1)
    is_decoded = layout.compression in DECODED_COMPRESSIONS
    if not is_decoded and not (is_jpeg_plane and layout.samples.num_bits == 8):
        yield from _iter_blocks_by_imagecodecs(page, layout)
        return
    segment = build_segment_format(page, layout)
    num_rows = int(page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength))
    across = -(-layout.width // segment.num_columns)
    down = -(-layout.height // num_rows)
    num_planes = layout.num_samples if layout.is_planar else 1
    offsets, sizes = page.dataoffsets, page.databytecounts
    if min(len(offsets), len(sizes)) < across * down * num_planes:
        raise DataError(
            f"damaged TIFF ({len(offsets)} of {across * down * num_planes} strips or tiles)"
        )
    for index in range(across * down * num_planes):
        plane, place = divmod(index, across * down)
        row, column = divmod(place, across)
        top = row * num_rows
        rows = num_rows if page.is_tiled else min(num_rows, layout.height - top)
        for chunk in iter_row_chunks(
            file, offsets[index], sizes[index], rows, segment, jpeg_tables=page.jpegtables
        ):
            if top < layout.height:
                yield _Block(top, column * segment.num_columns, plane, chunk)
            top += len(chunk)


def _iter_blocks_by_imagecodecs(page: "TiffPage", layout: TiffLayout) -> Iterator[_Block]:
    """Yield all samples as tifffile decodes them.

    Raises:
        DataError: imagecodecs is missing, or cannot decode the compression.
    """
    name = describe_compression(layout.compression)
    if not has_imagecodecs():
        raise DataError(
            f"TIFF compressed by {name}, which needs imagecodecs: pip install "
            f"'finetune-vision[tiff]', or store it with Deflate, LZW or no compression"
        )
    try:
        for samples, (plane, _, top, left, _), _ in page.segments():
            if samples is not None:
                yield _Block(top, left, plane, samples[0])
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"TIFF compressed by {name}: {error}") from error
