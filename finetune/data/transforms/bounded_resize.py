"""Resizing and centre crop of very long images, without the resized image in memory.

An image of 1 x 65,000 pixels whose shorter side becomes 256 would have 4 billion pixels, of which
the crop keeps 50,000.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image
from timm.data.transforms import ResizeKeepRatio
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms.functional import _compute_resized_output_size, pil_modes_mapping

MAX_RESIZED_PIXELS = 16_000_000
"""Pixels of a resized image above which only the pixels of its centre crop are computed."""

_MAX_SUPPORT = 3
"""Pixels on each side of a position that Lanczos, the widest filter, takes into account."""

Step = Callable[[Image.Image], Image.Image]


def apply_steps(image: Image.Image, steps: Sequence[Step]) -> Image.Image:
    """Return the result of the steps of timm's evaluation transform.

    A crop of an enlarged image has the same pixels whether it is cut before or after.

    Args:
        image: RGB image.
        steps: Resizing, crop or padding, and others.
    """
    remaining = list(steps)
    while remaining:
        step = remaining.pop(0)
        height, width = size = _find_output_size(step, image)
        following = remaining[0] if remaining else None
        if isinstance(following, CenterCrop) and height * width > MAX_RESIZED_PIXELS:
            image = _resize_window(image, size, following.size, _get_filter(step))
            remaining.pop(0)
        elif min(size) < 1:
            shape = max(1, width), max(1, height)
            image = image.resize(shape, _get_filter(step))
        else:
            image = step(image)
    return image


def _resize_window(
    image: Image.Image,
    size: tuple[int, int],
    crop: Sequence[int],
    resample: Image.Resampling,
) -> Image.Image:
    """Return the centre crop of an image resized to a height and width."""
    window = min(crop[0], size[0]), min(crop[1], size[1])
    rows, columns = (
        _find_source(*sides)
        for sides in zip((image.height, image.width), size, window, strict=True)
    )
    part = image.crop((columns.first, rows.first, columns.last, rows.last))
    # columns before rows, as Pillow does where both grow: values are rounded in between
    wide = part.resize(
        (window[1], part.height), resample, box=(columns.start, 0, columns.end, part.height)
    )
    resized = wide.resize(window[::-1], resample, box=(0, rows.start, window[1], rows.end))
    return resized if window == tuple(crop) else CenterCrop(list(crop))(resized)


class _Source(NamedTuple):
    """Part of a side of the source, and the window within it.

    Attributes:
        first: First pixel that the window depends on.
        last: Last one, exclusive.
        start: Start of the window in pixels from ``first``.
        end: End of the window.
    """

    first: int
    last: int
    start: float
    end: float


def _find_source(side: int, resized: int, window: int) -> _Source:
    """Return the part of a side of the source that the centre of its resized side depends on."""
    scale = side / resized
    offset = round((resized - window) / 2)
    start, end = offset * scale, min(float(side), (offset + window) * scale)
    margin = _MAX_SUPPORT * max(1.0, scale) + 1
    first, last = max(0, math.floor(start - margin)), min(side, math.ceil(end + margin))
    return _Source(first, last, start - first, end - first)


def _find_output_size(step: Step, image: Image.Image) -> tuple[int, int]:
    """Return the height and width to which a step resizes an image; its own for other steps."""
    if isinstance(step, ResizeKeepRatio):
        height, width = step.get_params(image, step.size, step.longest)  # type: ignore[no-untyped-call]
        return height, width
    if isinstance(step, Resize):
        sides = [step.size] if isinstance(step.size, int) else list(step.size)
        if len(sides) == 2:
            return sides[0], sides[1]
        height, width = _compute_resized_output_size((image.height, image.width), sides)
        return height, width
    return image.height, image.width


def _get_filter(step: Step) -> Image.Resampling:
    assert isinstance(step, Resize | ResizeKeepRatio)
    return Image.Resampling(pil_modes_mapping[step.interpolation])
