"""Views of an image for test-time augmentation: five and ten crops, sizes, and stacks of views."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from finetune.data.images.lazy_image import LazyImage
from finetune.data.images.multichannel import Planes, get_whole_image
from finetune.data.images.resample import Pixels
from finetune.data.transforms.bounded_resize import CORNERS_AND_CENTER, crop_at_anchors
from finetune.data.transforms.eval_transform import (
    EvalTransform,
    FixedSizeTransform,
    FlipPairTransform,
    Transform,
    View,
)
from finetune.types import Draw, PreprocessSpec, Tta

SIZE_FACTORS = (0.9, 1.0, 1.15)
"""Sizes of the views of ``Tta.SIZES``, relative to the image size of the model."""

_SIZE_STEP = 8
_SMALL_SIZE = 64


class ViewStack(NamedTuple):
    """Transform that stacks views vertically, and where they are.

    Attributes:
        transform: Transform to pixels of shape (H, W, C).
        boxes: First row, height and width of each view in these pixels.
    """

    transform: Transform
    boxes: tuple[tuple[int, int, int], ...]


class FiveCropTransform(FixedSizeTransform):
    """Crops of the resized image, stacked vertically: the four corners, then the centre.

    The image is resized as for the single evaluation view, which is the centre crop. With flips,
    the crops of the flipped resized image follow: those of Krizhevsky et al. 2012, section 4.1, in
    the order of torchvision's ``FiveCrop`` and ``TenCrop``.

    Args:
        transform: Transform of a single view.
        flips: Whether the crops of the flipped image follow.
    """

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, transform: EvalTransform, *, flips: bool) -> None:
        self.transform = transform
        self.flips = flips
        self.crop_size = transform.size
        height, width = transform.size
        self.size = (len(CORNERS_AND_CENTER) * (2 if flips else 1) * height, width)

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return all views; ``draw`` is ignored."""
        image = get_whole_image(lazy_image)
        if not isinstance(image, Planes):
            crops = crop_at_anchors(image, self.transform.steps, self.crop_size, flips=self.flips)
            return View(np.concatenate([np.array(crop) for crop in crops]))
        by_channel = [
            crop_at_anchors(channel, steps, self.crop_size, flips=self.flips)
            for channel, steps in zip(image.images, self.transform.channel_steps, strict=True)
        ]
        views = [Planes(channels).to_pixels() for channels in zip(*by_channel, strict=True)]
        return View(np.concatenate(views))


class StackedTransform(FixedSizeTransform):
    """Views of several transforms, stacked vertically, with zeros to the right of narrower ones.

    Args:
        transforms: Transforms of the same image.
    """

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)
        heights, widths = zip(*(transform.size for transform in transforms), strict=True)
        self.size = (sum(heights), max(widths))

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return all views; ``draw`` is ignored."""
        return View(
            np.concatenate([self._pad(t(lazy_image, None).pixels) for t in self.transforms])
        )

    def _pad(self, pixels: Pixels) -> Pixels:
        missing = self.size[1] - pixels.shape[1]
        return pixels if not missing else np.pad(pixels, ((0, 0), (0, missing), (0, 0)))


def build_view_stack(specs: Sequence[PreprocessSpec], tta: Tta) -> tuple[ViewStack, list[range]]:
    """Return the transform to the views of models, and which views belong to each of them.

    Models with the same preprocessing share views. A single view is that of ``EvalTransform``.

    Args:
        specs: Preprocessing of each model.
        tta: Test-time augmentation.
    """
    keys = [replace(spec, mean=(), std=()) for spec in specs]  # these apply on the device
    transforms: list[Transform] = []
    counts: list[int] = []
    views: dict[PreprocessSpec, range] = {}
    for key, spec in zip(keys, specs, strict=True):
        if key in views:
            continue
        start = sum(counts)
        for transform, count in _build_transforms(spec, tta):
            transforms.append(transform)
            counts.append(count)
        views[key] = range(start, sum(counts))
    boxes: list[tuple[int, int, int]] = []
    top = 0
    for transform, count in zip(transforms, counts, strict=True):
        height, width = transform.size
        for _ in range(count):
            boxes.append((top, height // count, width))
            top += height // count
    stacked = transforms[0] if len(transforms) == 1 else StackedTransform(transforms)
    return ViewStack(stacked, tuple(boxes)), [views[key] for key in keys]


def compute_sizes(spec: PreprocessSpec) -> list[tuple[int, int]]:
    """Return the heights and widths of the views of ``Tta.SIZES``, from the smallest on.

    They are multiples of 8 pixels, or even numbers below 64 pixels, but for the model's own size.
    """
    height, width = spec.input_size[1:]
    sizes = [
        (height, width) if factor == 1 else (_round(factor * height), _round(factor * width))
        for factor in SIZE_FACTORS
    ]
    return [size for previous, size in pairwise([(0, 0), *sizes]) if size != previous]


def _round(side: float) -> int:
    step = _SIZE_STEP if side >= _SMALL_SIZE else 2
    return max(step, step * round(side / step))


def _build_transforms(spec: PreprocessSpec, tta: Tta) -> list[tuple[Transform, int]]:
    """Return the transforms to the views of a model, each with its number of views."""
    single = EvalTransform(spec)
    match tta:
        case Tta.NONE:
            return [(single, 1)]
        case Tta.HFLIP:
            return [(FlipPairTransform(single), 2)]
        case Tta.CROPS:
            return [(FiveCropTransform(single, flips=False), len(CORNERS_AND_CENTER))]
        case Tta.CROPS10:
            return [(FiveCropTransform(single, flips=True), 2 * len(CORNERS_AND_CENTER))]
        case Tta.SIZES:
            channels = spec.input_size[0]
            return [
                (EvalTransform(replace(spec, input_size=(channels, *size))), 1)
                for size in compute_sizes(spec)
            ]
