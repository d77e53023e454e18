"""Layout of a TIFF image: what its samples mean and how they are stored, from tifffile's tags."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.images.bit_depth import SampleType
from finetune.data.images.codecs.jpeg_header import to_orientation
from finetune.data.images.codecs.tiff_segments import (
    DECODED_COMPRESSIONS,
    JPEG,
    NONE,
    SegmentFormat,
)
from finetune.errors import DataError

if TYPE_CHECKING:
    from tifffile import TiffPage

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED = 0, 1, 2, 3, 5
_YCBCR = 6
_BASE_SAMPLES = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, SEPARATED: 4}
_PHOTOMETRIC_NAMES = {
    4: "a transparency mask", _YCBCR: "YCbCr colours", 8: "CIELab colours", 9: "ICCLab colours",
    10: "ITULab colours", 32803: "a colour filter array (a raw photo)", 32844: "LogL samples",
    32845: "LogLuv samples", 34892: "linear raw samples (a raw photo)", 51177: "a depth map",
}  # fmt: skip
_COMPRESSION_NAMES = {
    2: "CCITT run lengths", 3: "CCITT fax 3", 4: "CCITT fax 4", 5: "LZW", 6: "old-style JPEG",
    7: "JPEG", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34661: "JBIG",
    34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG", 34926: "Zstandard", 34927: "WebP",
    34933: "PNG", 34934: "JPEG XR", 22610: "JPEG XR", 50001: "WebP", 50002: "JPEG XL",
    52546: "JPEG XL",
}  # fmt: skip
_PILLOW_COMPRESSIONS = frozenset({2, 3, 4, 6, JPEG})
"""Compressions that are left to Pillow where a pixel has at most 8 bits a sample and no alpha."""
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
_MAX_IGNORED_SAMPLES = {1: 1, 3: 3, 4: 1}
"""By the number of colour samples, how many further ones without a meaning are ignored."""


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """Layout of the first image of a TIFF file.

    Attributes:
        width: Columns as stored.
        height: Rows as stored.
        photometric: TIFF's number of the colour space.
        num_samples: Samples of a pixel, with alpha and ignored ones.
        alpha: Index of the alpha sample; None without one.
        is_premultiplied: Whether colours are already multiplied by alpha.
        is_planar: Whether each sample has a plane of its own.
        compression: TIFF's number.
        samples: Type of the samples.
        orientation: 1 to 8, as in EXIF.
    """

    width: int
    height: int
    photometric: int
    num_samples: int
    alpha: int | None
    is_premultiplied: bool
    is_planar: bool
    compression: int
    samples: SampleType
    orientation: int

    @property
    def num_colors(self) -> int:
        """Samples of a pixel that stand for its colour."""
        return _BASE_SAMPLES[self.photometric]

    @property
    def mode(self) -> str:
        """Name of the mode in Pillow's manner, with the bits where they are not 8."""
        names = {1: "L", 3: "RGB", 4: "CMYK"}
        name = "P" if self.photometric == PALETTE else names[self.num_colors]
        name += "" if self.alpha is None else "A"
        if name == "L" and self.samples.num_bits == 16 and self.samples.dtype.kind == "u":
            return "I;16"
        return name if self.samples.num_bits == 8 else f"{name};{self.samples.num_bits}"


def is_left_to_pillow(page: "TiffPage") -> bool:
    """Return whether Pillow reads a layout as it should.

    It was compared with tifffile for all layouts that tifffile writes, see the tests of ``tiff``.
    """
    bits, spp = page.bitspersample, page.samplesperpixel
    if not isinstance(bits, int) or bits > 8 or _get_sample_format(page) != 1:
        return False
    base = _BASE_SAMPLES.get(int(page.photometric))
    has_extra = bool(page.extrasamples) or (base is not None and spp != base)
    if int(page.compression) in _PILLOW_COMPRESSIONS:
        return not has_extra
    if int(page.compression) not in DECODED_COMPRESSIONS or int(page.predictor) > 2:
        return False
    if int(page.photometric) == _YCBCR:
        num_bytes = page.imagewidth * page.imagelength * 3
        is_subsampled = int(page.compression) == NONE and sum(page.databytecounts) < num_bytes
        return bits == 8 and not has_extra and not is_subsampled
    if page.parent.is_bigtiff:
        return False
    is_plain = not has_extra and int(page.photometric) in (BLACK_IS_ZERO, RGB, SEPARATED)
    return is_plain and bits == 8 and (spp == 1 or int(page.planarconfig) == 1)


def read_layout(page: "TiffPage", *, allow_bands: bool = False) -> TiffLayout:
    """Return the layout of a page that is not left to Pillow.

    Args:
        page: Page of a TIFF file.
        allow_bands: Whether a pixel may have any number of samples besides its colours.

    Raises:
        DataError: It is not supported; the message names it.
    """
    photometric, spp = int(page.photometric), int(page.samplesperpixel)
    bits = page.bitspersample
    if photometric not in _BASE_SAMPLES:
        name = _PHOTOMETRIC_NAMES.get(photometric, f"colour space {photometric}")
        raise DataError(f"TIFF with {name}, which {_are(name)} not supported")
    if not isinstance(bits, int):
        raise DataError(f"TIFF with samples of {', '.join(map(str, bits))} bits in one pixel")
    if page.imagedepth > 1:
        raise DataError(f"TIFF volume of {page.imagedepth} slices; store each as an image")
    num_colors = _BASE_SAMPLES[photometric]
    extra = [int(kind) for kind in page.extrasamples]
    extra += [0] * (spp - num_colors - len(extra))
    alphas = [i for i, k in enumerate(extra) if k in (_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA)]
    num_ignored = len(extra) - bool(alphas)
    if spp < num_colors:
        raise DataError(
            f"damaged TIFF ({spp} samples in a pixel, fewer than the {num_colors} of its colours)"
        )
    if num_ignored > _MAX_IGNORED_SAMPLES[num_colors] and not allow_bands:
        raise DataError(
            f"TIFF of {spp} bands of {bits} bits that are not declared as RGB; train on all bands "
            f"with data.channels={spp}, or save those that show the objects as grey or RGB"
        )
    alpha = alphas[0] if alphas else None
    return TiffLayout(
        width=int(page.imagewidth),
        height=int(page.imagelength),
        photometric=photometric,
        num_samples=spp,
        alpha=None if alpha is None else num_colors + alpha,
        is_premultiplied=alpha is not None and extra[alpha] == _ASSOCIATED_ALPHA,
        is_planar=spp > 1 and int(page.planarconfig) == 2,
        compression=int(page.compression),
        samples=_read_sample_type(page),
        orientation=to_orientation(_read_number(page, 274, 1)),
    )


def describe_compression(compression: int) -> str:
    """Return the name of a compression."""
    return _COMPRESSION_NAMES.get(compression, f"number {compression}")


def build_segment_format(page: "TiffPage", layout: TiffLayout) -> SegmentFormat:
    """Return how the samples of the strips or tiles are stored.

    Raises:
        DataError: The predictor is not supported.
    """
    predictor = int(page.predictor)
    is_whole = layout.samples.num_bits == 8 * layout.samples.dtype.itemsize
    is_known = predictor == 1 or (
        is_whole and (predictor == 2 or (predictor == 3 and layout.samples.dtype.kind == "f"))
    )
    if not is_known:
        raise DataError(
            f"TIFF with predictor {predictor} of {layout.samples.describe()}s, which is not "
            f"supported"
        )
    return SegmentFormat(
        compression=layout.compression,
        predictor=predictor,
        byte_order=page.parent.byteorder,
        dtype=layout.samples.dtype,
        num_bits=layout.samples.num_bits,
        num_columns=int(page.tilewidth if page.is_tiled else page.imagewidth),
        num_samples=1 if layout.is_planar else layout.num_samples,
        is_bit_reversed=int(page.fillorder) == 2,
    )


def read_color_map(page: "TiffPage") -> NDArray[np.uint8]:
    """Return the colours of a palette image, uint8, shape (number, 3).

    TIFF's have 16 bits; where none is above 255, a writer has stored 8, as libtiff's tools assume.

    Raises:
        DataError: There is no colour map.
    """
    if page.colormap is None:
        raise DataError("TIFF of a palette without its colour map")
    colors: NDArray[Any] = np.asarray(page.colormap).T
    return (colors if colors.max(initial=0) <= 255 else colors >> 8).astype(np.uint8)


def _read_sample_type(page: "TiffPage") -> SampleType:
    bits, sample_format = int(page.bitspersample), _get_sample_format(page)
    kinds = {1: "u", 2: "i", 3: "f", 4: "u"}
    if sample_format not in kinds:
        raise DataError("TIFF of complex numbers, which are not supported")
    kind = kinds[sample_format]
    sizes = (16, 32, 64) if kind == "f" else (8, 16, 32, 64)
    size = next((size for size in sizes if size >= bits), None)
    if size is None or (kind != "u" and size != bits) or (bits > 16 and size != bits):
        raise DataError(f"TIFF of {bits}-bit samples, which are not supported")
    dtype = np.dtype(f"{kind}{size // 8}")
    return SampleType(dtype, bits, _read_white(page, bits) if kind == "u" else None)


def _read_white(page: "TiffPage", bits: int) -> int | None:
    """Return the value of white that a file of 16 bits states as a smaller number of bits.

    Only 2^n - 1 states bits; any other MaxSampleValue is the largest value of the one image, which
    must not change how it looks (TIFF 6.0, page 37).
    """
    for tag in (281, 341):  # MaxSampleValue, SMaxSampleValue
        white = _read_number(page, tag, 0)
        if 8 <= white.bit_length() < bits <= 16 and white & (white + 1) == 0:
            return white
    return None


def _get_sample_format(page: "TiffPage") -> int:
    """Return the format of all samples.

    Raises:
        DataError: They differ.
    """
    tag = page.tags.get(339)
    values = {1} if tag is None else set(np.atleast_1d(np.asarray(tag.value)).tolist())
    if len(values) != 1:
        raise DataError("TIFF whose samples have different formats")
    return int(values.pop())


def _read_number(page: "TiffPage", code: int, default: int) -> int:
    """Return the largest number of a tag; the default where it is missing or no whole number."""
    tag = page.tags.get(code)
    try:
        return default if tag is None else int(np.max(np.asarray(tag.value)))
    except (TypeError, ValueError):
        return default


def _are(name: str) -> str:
    return "is" if name.startswith(("a ", "colour space")) else "are"
