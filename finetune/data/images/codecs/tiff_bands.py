"""Reading of TIFF files of any number of bands: side by side, in planes, or one in each page."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from finetune.data.images.bit_depth import (
    DecodedImage,
    SampleConverter,
    SampleType,
    allocate_pixels,
    choose_range,
)
from finetune.data.images.codecs.tiff import has_imagecodecs, iter_blocks, open_first_page
from finetune.data.images.codecs.tiff_layout import (
    PALETTE,
    WHITE_IS_ZERO,
    TiffLayout,
    describe_compression,
    read_layout,
)
from finetune.data.images.read_errors import check_size
from finetune.data.images.resample import Pixels
from finetune.errors import DataError
from finetune.types import ReadOptions

if TYPE_CHECKING:
    from tifffile import TiffPage, TiffPageSeries


def read_bands(path: Path, options: ReadOptions) -> DecodedImage | None:
    """Return all bands of a TIFF, in their order; None for grey and colours that stand for them.

    Bands are the samples of a pixel; of a file whose pixels have one sample, the pages; or the
    first or last axis of an array that tifffile has written.

    Args:
        path: TIFF file.
        options: Number of channels C and their bits, limit of pixels, and range of values.

    Raises:
        DataError: The file has another number of bands, or a layout that is not supported.
        Exception: The data are damaged; various, as libraries raise them.
    """
    num_channels = options.num_channels
    if num_channels in (1, 3):
        return None
    with path.open("rb") as file:
        page = open_first_page(file)
        num_samples = int(page.samplesperpixel)
        if int(page.photometric) == PALETTE or (num_channels == 2 and num_samples == 1):
            return None
        if num_samples == num_channels:
            return _read_pages(file, [page], options)
        series = page.parent.series[0]
        shape = tuple(int(side) for side in series.shape if side != 1)
        if len(shape) == 3 and num_channels in (shape[0], shape[2]):
            pages = [cast("TiffPage", p) for p in page.parent.pages]
            if num_samples == 1 and len(pages) == num_channels == shape[0]:
                return _read_pages(file, pages, options)
            return _read_array(series, shape, options)
        counts = f"{num_samples} band{'s' if num_samples > 1 else ''}"
        if len(page.parent.pages) > 1:
            counts += f" in each of {len(page.parent.pages)} pages"
        raise DataError(f"TIFF of {counts}, but data.channels={num_channels}")


def _read_pages(file: BinaryIO, pages: "list[TiffPage]", options: ReadOptions) -> DecodedImage:
    layouts = [read_layout(page, allow_bands=True) for page in pages]
    first = layouts[0]
    check_size(first.width, first.height, options.max_pixels)
    if any((other.width, other.height) != (first.width, first.height) for other in layouts):
        raise DataError(f"TIFF of {len(pages)} pages of different sizes")
    decoded = _decode_pages(file, pages, layouts, options)
    white = first.samples.white
    if white is None:
        return decoded
    if decoded.max_value <= white:
        return replace(decoded, max_value=0)
    # the statement is wrong
    unstated = [replace(one, samples=replace(one.samples, white=None)) for one in layouts]
    return _decode_pages(file, pages, unstated, options)


def _decode_pages(
    file: BinaryIO, pages: "list[TiffPage]", layouts: list[TiffLayout], options: ReadOptions
) -> DecodedImage:
    first = layouts[0]
    converter = _build_converter(first.samples, options)
    pixels = allocate_pixels(
        first.height, first.width, options.num_channels, bit_depth=options.bit_depth
    )
    for number, (page, layout) in enumerate(zip(pages, layouts, strict=True)):
        for block in iter_blocks(file, page, layout):
            top, left = block.top, block.left
            inside = block.samples[: layout.height - top, : layout.width - left]
            band = number + block.first_sample
            pixels[
                top : top + inside.shape[0],
                left : left + inside.shape[1],
                band : band + inside.shape[2],
            ] = converter.convert(inside)
        if layout.photometric == WHITE_IS_ZERO:
            pixels[..., number] = np.iinfo(pixels.dtype).max - pixels[..., number]
    return _build_image(pixels, first.samples, converter, first.orientation)


def _read_array(
    series: "TiffPageSeries", shape: tuple[int, ...], options: ReadOptions
) -> DecodedImage:
    """Return an array as tifffile has written it, with its bands in the first or last axis."""
    is_last = shape[2] == options.num_channels and series.axes[-1] not in "X"
    is_last |= shape[0] != options.num_channels
    height, width = shape[:2] if is_last else shape[1:]
    check_size(width, height, options.max_pixels)
    page = series.keyframe
    samples = read_layout(page, allow_bands=True).samples
    converter = _build_converter(samples, options)
    pixels = allocate_pixels(
        height,
        width,
        options.num_channels,
        working_bytes=options.num_channels * samples.dtype.itemsize,
        bit_depth=options.bit_depth,
    )
    try:
        array = series.asarray().reshape(shape)
    except ValueError as error:
        if has_imagecodecs() or "imagecodecs" not in str(error):
            raise
        raise DataError(
            f"TIFF compressed by {describe_compression(int(page.compression))} in "
            f"{len(page.parent.pages)} pages, which needs imagecodecs: pip install "
            f"'finetune-vision[tiff]'"
        ) from error
    pixels[...] = converter.convert(array if is_last else np.moveaxis(array, 0, 2))
    return _build_image(pixels, samples, converter, 1)


def _build_converter(samples: SampleType, options: ReadOptions) -> SampleConverter:
    value_range = choose_range(samples, options.pixel_range)
    return SampleConverter(samples, value_range, bit_depth=options.bit_depth)


def _build_image(
    pixels: Pixels, samples: SampleType, converter: SampleConverter, orientation: int
) -> DecodedImage:
    converter.check()
    is_measured = samples.num_bits == 16 and samples.dtype.kind == "u"
    return DecodedImage(
        pixels=pixels,
        orientation=orientation,
        mode=f"{pixels.shape[2]}x{samples.num_bits}",
        max_value=int(converter.max_value) if is_measured else 0,
        is_clipped=converter.is_clipped,
    )
