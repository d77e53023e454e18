"""Resizing and centre crop of very long images, without the resized image in memory.

An image of 1 x 65,000 pixels whose shorter side becomes 256 would have 4 billion pixels, of which
the crop keeps 50,000.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms.functional import _compute_resized_output_size, pad, pil_modes_mapping

MAX_RESIZED_PIXELS = 16_000_000
"""Pixels of a resized image above which only the pixels of its centre crop are computed."""

_MAX_SUPPORT = 3
"""Pixels on each side of a position that Lanczos, the widest filter, takes into account."""

CORNERS_AND_CENTER = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))
"""Places of five crops, horizontal and vertical: 0 is left or top, 1 is right or bottom."""

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
        else:
            image = _apply_step(image, step, size)
    return image


def crop_at_anchors(
    image: Image.Image,
    steps: Sequence[Step],
    crop_size: tuple[int, int],
    *,
    flips: bool = False,
) -> list[Image.Image]:
    """Return the crops of the resized image at ``CORNERS_AND_CENTER``.

    An image that is smaller than a crop on one side is first padded there, as by a centre crop.

    Args:
        image: RGB image.
        steps: Steps of timm's evaluation transform, with one centre crop.
        crop_size: Height and width of the crops.
        flips: Whether the crops of the flipped image follow.
    """
    is_crop = [isinstance(step, CenterCrop | CenterCropOrPad) for step in steps]
    before = list(steps[: is_crop.index(True)])
    if len(before) == 1:
        size = _find_output_size(before[0], image)
        if size[0] * size[1] > MAX_RESIZED_PIXELS:
            images = [image, _flip(image)] if flips else [image]
            return [
                CenterCrop(crop_size)(
                    _resize_window(i, size, crop_size, _get_filter(before[0]), anchor=anchor)
                )
                for i in images
                for anchor in CORNERS_AND_CENTER
            ]
    for step in before:
        image = _apply_step(image, step, _find_output_size(step, image))
    image = _pad_to(image, crop_size, steps[len(before)])
    crops = [_crop(image, crop_size, *anchor) for anchor in CORNERS_AND_CENTER]
    if flips:
        crops += [_crop(_flip(image), crop_size, *anchor) for anchor in CORNERS_AND_CENTER]
    return crops


def _crop(image: Image.Image, size: tuple[int, int], across: float, down: float) -> Image.Image:
    """Return the crop of a height and width at an anchor."""
    left, top = (
        _find_offset(image.width, size[1], across),
        _find_offset(image.height, size[0], down),
    )
    return image.crop((left, top, left + size[1], top + size[0]))


def _flip(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _apply_step(image: Image.Image, step: Step, size: tuple[int, int]) -> Image.Image:
    """Return the result of a step; a side that it would resize to nothing has one pixel."""
    if min(size) < 1:
        return image.resize((max(1, size[1]), max(1, size[0])), _get_filter(step))
    return step(image)


def _pad_to(image: Image.Image, size: tuple[int, int], step: Step) -> Image.Image:
    """Return an image that is at least as high and wide as a size, padded as by a centre crop."""
    missing = max(0, size[1] - image.width), max(0, size[0] - image.height)
    if missing == (0, 0):
        return image
    padded: Image.Image = pad(
        image,
        [missing[0] // 2, missing[1] // 2, (missing[0] + 1) // 2, (missing[1] + 1) // 2],
        fill=getattr(step, "fill", 0),
        padding_mode=getattr(step, "padding_mode", "constant"),
    )
    return padded


def _find_offset(side: int, length: int, place: float) -> int:
    """Return the start of a window on a side, at 0 for its start, 1 for its end, or between."""
    return round((side - length) * place)


def _resize_window(
    image: Image.Image,
    size: tuple[int, int],
    crop: Sequence[int],
    resample: Image.Resampling,
    *,
    anchor: tuple[float, float] = (0.5, 0.5),
) -> Image.Image:
    """Return a crop, in the centre or at an anchor, of an image resized to a height and width."""
    window = min(crop[0], size[0]), min(crop[1], size[1])
    rows, columns = (
        _find_source(*sides)
        for sides in zip((image.height, image.width), size, window, anchor[::-1], strict=True)
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


def _find_source(side: int, resized: int, window: int, place: float) -> _Source:
    """Return the part of a side of the source that a window of its resized side depends on."""
    scale = side / resized
    offset = _find_offset(resized, window, place)
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
