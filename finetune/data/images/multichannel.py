"""Images of other channels than RGB of 8 bits: grey, opacity, bands of a TIFF, 16 bits."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from finetune.data.images.lazy_image import ArrayImage, LazyImage
from finetune.data.images.resample import Pixels
from finetune.errors import DataError
from finetune.types import ReadOptions

_ROWS_AT_ONCE = 256
_LUMA_WEIGHTS = (19_595, 38_470, 7_471)
"""Weights of R, G and B in grey, of 65536; those of Pillow's conversion to L."""


@dataclass(frozen=True, slots=True)
class Planes:
    """Channels of an image as images of Pillow, which are resized and cropped one by one.

    Attributes:
        images: Images of mode L, or of mode F in [0, 255] for 16 bits.
    """

    images: tuple[Image.Image, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.images[0].size

    @property
    def width(self) -> int:
        """Width."""
        return self.images[0].width

    @property
    def height(self) -> int:
        """Height."""
        return self.images[0].height

    def crop(self, box: tuple[int, int, int, int]) -> "Planes":
        """Return a box of left, top, right and bottom."""
        return Planes(tuple(image.crop(box) for image in self.images))

    def transpose(self, method: Image.Transpose) -> "Planes":
        """Return the flipped or turned image."""
        return Planes(tuple(image.transpose(method) for image in self.images))

    def to_pixels(self) -> Pixels:
        """Return the channels as pixels, uint8 or uint16, shape (H, W, C)."""
        pixels: Pixels = np.stack([np.asarray(image) for image in self.images], axis=2)
        if pixels.dtype == np.uint8:
            return pixels
        scaled: Pixels = np.rint(pixels * 257).clip(0, 65_535).astype(np.uint16)
        return scaled


WholeImage = Image.Image | Planes
"""Whole image of Pillow for RGB of 8 bits, else its channels."""


class MultichannelImage(ArrayImage):
    """Image in memory of C channels of 8 or 16 bits, see ``ArrayImage``.

    Pixels are uint8 or uint16, of shape (H, W, C). What people look at and what the audit compares
    is a rendering: grey, RGB, RGB on white with opacity, the first three of more bands.
    """

    def to_planes(self) -> Planes:
        """Return all channels."""
        if self.pixels.dtype == np.uint8:
            channels = (np.ascontiguousarray(self.pixels[..., i]) for i in self._channels)
        else:
            channels = (
                (self.pixels[..., i].astype(np.float64) / 257).astype(np.float32)
                for i in self._channels
            )
        return Planes(tuple(map(Image.fromarray, channels)))

    def to_pil(self) -> Image.Image:
        """Return a rendering in RGB of 8 bits."""
        pixels, num_channels = self._to_8_bits(), self.pixels.shape[2]
        if num_channels <= 2:
            # Pillow tells modes by the number of axes: sides of 1 px must stay
            shown = pixels[..., 0] if num_channels == 1 else pixels
        else:
            shown = pixels if num_channels == 4 else pixels[..., :3]
        image = Image.fromarray(np.ascontiguousarray(shown))
        if num_channels not in (2, 4):
            return image.convert("RGB")
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")

    def to_grey(self, side: int) -> Image.Image:
        """Return a rendering in grey: the mean of the bands where they are more than RGB."""
        if self.pixels.shape[2] <= 4:
            return self.to_pil().convert("L")
        return Image.fromarray(self._to_8_bits().mean(axis=2).round().astype(np.uint8))

    @property
    def _channels(self) -> range:
        return range(self.pixels.shape[2])

    def _to_8_bits(self) -> Pixels:
        return self.pixels if self.pixels.dtype == np.uint8 else (self.pixels >> 8).astype(np.uint8)


def get_whole_image(lazy_image: LazyImage) -> WholeImage:
    """Return the whole image: as Pillow's RGB, or its channels."""
    if isinstance(lazy_image, MultichannelImage):
        return lazy_image.to_planes()
    return lazy_image.to_pil()


def get_whole_pixels(lazy_image: LazyImage) -> Pixels:
    """Return the pixels of the whole image, shape (H, W, C)."""
    if isinstance(lazy_image, MultichannelImage):
        return lazy_image.pixels
    return np.asarray(lazy_image.to_pil())


def build_stored_image(pixels: Pixels, *, height: int, width: int) -> ArrayImage:
    """Return an image of pixels, which may be smaller than the full height and width."""
    is_rgb = pixels.shape[2] == 3 and pixels.dtype == np.uint8
    image_type = ArrayImage if is_rgb else MultichannelImage
    return image_type(pixels, height=height, width=width)


def select_channels(image: LazyImage, options: ReadOptions) -> MultichannelImage:
    """Return the channels that options ask for.

    Args:
        image: Image of RGB, or of RGB and opacity where that is kept, in 8 or 16 bits.
        options: Number of channels and bits.

    Raises:
        DataError: The file has not that many channels.
    """
    if isinstance(image, MultichannelImage):
        return image
    colors = image.pixels if isinstance(image, ArrayImage) else np.asarray(image.to_pil())
    select = _SELECTIONS.get(options.num_channels)
    if select is None:
        raise DataError(
            f"image of mode {image.mode}, but data.channels={options.num_channels} needs a TIFF of "
            f"that many bands"
        )
    if options.bit_depth == 16 and colors.dtype == np.uint8:
        colors = colors.astype(np.uint16) * 257
    return MultichannelImage(
        select(colors),
        height=image.height,
        width=image.width,
        mode=image.mode,
        max_value=image.max_value,
        is_clipped=isinstance(image, ArrayImage) and image.is_clipped,
    )


def _compute_luma(colors: Pixels) -> Pixels:
    """Return the grey of colours, shape (H, W, 1), as Pillow computes it for 8 bits."""
    grey = np.empty((*colors.shape[:2], 1), colors.dtype)
    red, green, blue = _LUMA_WEIGHTS
    for first in range(0, len(colors), _ROWS_AT_ONCE):
        rows = colors[first : first + _ROWS_AT_ONCE].astype(np.uint32)
        total = rows[..., 0] * red + rows[..., 1] * green + rows[..., 2] * blue + 32_768
        grey[first : first + _ROWS_AT_ONCE, :, 0] = total >> 16
    return grey


def _get_alpha(colors: Pixels) -> Pixels:
    if colors.shape[2] == 4:
        return colors[..., 3:]
    return np.full((*colors.shape[:2], 1), np.iinfo(colors.dtype).max, colors.dtype)


def _add_alpha(colors: Pixels) -> Pixels:
    if colors.shape[2] == 4:
        return colors
    return np.concatenate([colors, _get_alpha(colors)], axis=2)


_SELECTIONS: dict[int, Callable[[Pixels], Pixels]] = {
    1: _compute_luma,
    2: lambda colors: np.concatenate([_compute_luma(colors), _get_alpha(colors)], axis=2),
    3: lambda colors: colors,
    4: _add_alpha,
}
"""Function from RGB, with or without opacity, to each number of channels."""
