"""Images that return crops, from no more pixels than a crop needs.

Images above ``LARGE_PIXELS`` are never in memory twice: the whole of one is returned shrunk by a
whole factor.
"""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from PIL import Image

from finetune.data.images.resample import Box, Interpolation, Pixels, crop_scaled, resize

LARGE_PIXELS = 40_000_000
"""Number of pixels above which the whole image is returned at a reduced size."""

_WHOLE_PIXELS = 24_000_000
"""Number of pixels to which a large image is reduced."""

STRIP_PIXELS = 4_000_000
"""Pixels that are converted at once."""

EXIF_TRANSFORMS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
"""EXIF orientation to whether rows are flipped, columns are flipped, and both are transposed."""


class LazyImage(Protocol):
    """Upright RGB image of ``height`` x ``width`` pixels that returns crops.

    Attributes:
        height: Height of the upright image.
        width: Width of the upright image.
        mode: Mode of the file's pixels, as Pillow names it.
        max_value: Largest sample of an image of 16 bits that does not state its bits; 0 for others.
    """

    height: int
    width: int
    mode: str
    max_value: int

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        """Return a crop resized to uint8 pixels of shape (*size, 3), antialiased if it shrinks."""

    def to_pil(self) -> Image.Image:
        """Return the whole image; shrunk by a whole factor above ``LARGE_PIXELS``."""

    def to_grey(self, side: int) -> Image.Image:
        """Return the whole image in grey, shrunk by a whole factor to no less than ``side``."""


class ArrayImage:
    """Image whose pixels are in memory.

    Args:
        pixels: Pixels of the whole image, uint8, shape (H, W, 3); smaller than the full image if it
            was shrunk.
        height: Height of the full image.
        width: Width of the full image.
        mode: Mode of the file's pixels.
        max_value: Largest sample, see ``LazyImage``.
        is_clipped: Whether a sample of any type is above the range that it was read with.
    """

    def __init__(
        self,
        pixels: Pixels,
        *,
        height: int,
        width: int,
        mode: str = "RGB",
        max_value: int = 0,
        is_clipped: bool = False,
    ) -> None:
        self.pixels = pixels
        self.height = height
        self.width = width
        self.mode = mode
        self.max_value = max_value
        self.is_clipped = is_clipped

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        """Return a resized crop; its edges are rounded to whole stored pixels."""
        rows, columns, _ = self.pixels.shape
        scale = (rows / self.height, columns / self.width)
        return resize(crop_scaled(self.pixels, box, scale), size, mode)

    def to_pil(self) -> Image.Image:
        """Return all stored pixels, see ``LazyImage``."""
        factor = choose_whole_factor(*self.pixels.shape[:2])
        if factor == 1:
            return Image.fromarray(np.ascontiguousarray(self.pixels))
        return Image.fromarray(reduce_rows(self._get_rows, self.pixels.shape[:2], factor))

    def to_grey(self, side: int) -> Image.Image:
        """Return the image in grey, see ``LazyImage``."""
        return self.to_pil().convert("L")

    def _get_rows(self, first: int, last: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[first:last]))


class PillowImage:
    """Large image in Pillow's memory, of which only what is needed is converted to RGB.

    Args:
        image: Loaded image as stored.
        flatten: Function from a part of it to RGB.
        orientation: EXIF orientation, 1 to 8.
        mode: Mode of the file's pixels.
        max_value: Largest sample, see ``LazyImage``.
    """

    def __init__(
        self,
        image: Image.Image,
        *,
        flatten: Callable[[Image.Image], Image.Image],
        orientation: int,
        mode: str,
        max_value: int = 0,
    ) -> None:
        self.image = image
        self.flatten = flatten
        self.orientation = orientation
        self.mode = mode
        self.max_value = max_value
        self.shape = (image.height, image.width)
        self.height, self.width = self.shape if orientation < 5 else self.shape[::-1]

    def crop(self, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
        """Return a resized crop; it is shrunk by a whole factor, not below ``size``, first."""
        stored = to_stored_box(box, self.shape, self.orientation)
        is_transposed = EXIF_TRANSFORMS[self.orientation][2]
        target = size[::-1] if is_transposed else size
        height, width = stored[3] - stored[1], stored[2] - stored[0]
        factor = max(1, min(height // target[0], width // target[1]))
        resized = resize(self._reduce(stored, factor), target, mode)
        return np.ascontiguousarray(apply_orientation(resized, self.orientation))

    def to_pil(self) -> Image.Image:
        """Return the whole image, see ``LazyImage``."""
        return self._get_upright(choose_whole_factor(*self.shape))

    def to_grey(self, side: int) -> Image.Image:
        """Return the image in grey, see ``LazyImage``."""
        factor = max(choose_whole_factor(*self.shape), min(self.shape) // side)
        return self._get_upright(factor).convert("L")

    def _get_upright(self, factor: int) -> Image.Image:
        pixels = self._reduce((0, 0, self.shape[1], self.shape[0]), factor)
        return Image.fromarray(np.ascontiguousarray(apply_orientation(pixels, self.orientation)))

    def _reduce(self, box: Box, factor: int) -> Pixels:
        left, top, right, bottom = box

        def get_rows(first: int, last: int) -> Image.Image:
            return self.flatten(self.image.crop((left, top + first, right, top + last)))

        return reduce_rows(get_rows, (bottom - top, right - left), factor)


def choose_whole_factor(height: int, width: int) -> int:
    """Return the whole factor by which the sides of a whole image are divided; 1 up to a limit."""
    if height * width <= LARGE_PIXELS:
        return 1
    return math.ceil(math.sqrt(height * width / _WHOLE_PIXELS))


def reduce_rows(
    get_rows: Callable[[int, int], Image.Image], shape: tuple[int, int], factor: int
) -> Pixels:
    """Return an image shrunk by a whole factor by averaging, from a few rows at a time.

    Args:
        get_rows: Function from the first and the last row, exclusive, to these rows in RGB or RGBA.
        shape: Height and width of the image.
        factor: Factor; at the lower and right edges the mean is over the pixels that there are.

    Returns:
        Pixels, uint8, shape (ceil(H / factor), ceil(W / factor), 3); 4 with opacity.
    """
    height, width = shape
    num_channels = len(get_rows(0, 1).getbands())
    pixels = np.empty((-(-height // factor), -(-width // factor), num_channels), np.uint8)
    step = max(1, STRIP_PIXELS // width // factor) * factor
    for first in range(0, height, step):
        rows = get_rows(first, min(first + step, height))
        small = np.asarray(rows.reduce(factor) if factor > 1 else rows)
        pixels[first // factor : first // factor + len(small)] = small
    return pixels


def apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels as stored upright, as a view."""
    flip_rows, flip_columns, is_transposed = EXIF_TRANSFORMS[orientation]
    flipped = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return flipped.transpose(1, 0, 2) if is_transposed else flipped


def to_stored_box(box: Box, shape: tuple[int, int], orientation: int) -> Box:
    """Return a box of the upright image in pixels as stored.

    Args:
        box: Box in the upright image.
        shape: Height and width as stored.
        orientation: EXIF orientation, 1 to 8.
    """
    left, top, right, bottom = box
    flip_rows, flip_columns, is_transposed = EXIF_TRANSFORMS[orientation]
    height, width = shape
    if is_transposed:
        left, top, right, bottom = top, left, bottom, right
    if flip_columns:
        left, right = width - right, width - left
    if flip_rows:
        top, bottom = height - bottom, height - top
    return left, top, right, bottom
