"""Evaluation transforms: timm's preprocessing up to normalisation, its flip and further crops."""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from finetune.data.images.lazy_image import LazyImage
from finetune.data.images.multichannel import Planes, WholeImage, get_whole_image
from finetune.data.images.resample import Pixels
from finetune.data.transforms.color_jitter import ColorMatrix
from finetune.types import Draw, PreprocessSpec

Step = Callable[[Image.Image], Image.Image]


class View(NamedTuple):
    """Output of a transform for an image.

    Attributes:
        pixels: Pixels, uint8 or uint16, shape (H, W, C).
        color_matrix: Color matrix to apply on the device, float32, shape (C, C + 1); None for none.
    """

    pixels: Pixels
    color_matrix: ColorMatrix | None = None


class Transform(Protocol):
    """Transform from an image to pixels of the network's input size.

    Attributes:
        size: Largest height and width of the returned pixels.
        has_color_matrix: Whether the returned views have color matrices.
        is_random: Whether the views depend on the draw, so that they cannot be cached.
        has_flip: Whether images may be flipped horizontally, so that a flip changes no class.
        min_side_px: Shorter side of stored images from which no crop is enlarged; None if the full
            resolution may be needed.
    """

    size: tuple[int, int]
    has_color_matrix: bool
    is_random: bool
    has_flip: bool
    min_side_px: int | None

    def get_size(self, epoch: int) -> tuple[int, int]:
        """Return height and width of the pixels in an epoch."""

    def __call__(self, lazy_image: LazyImage, draw: Draw | None) -> View:
        """Return a view of the image."""


class FixedSizeTransform:
    """Base of transforms with the same size in every epoch."""

    size: tuple[int, int]

    def get_size(self, epoch: int) -> tuple[int, int]:
        """Return height and width of the pixels in any epoch."""
        del epoch
        return self.size


class EvalTransform(FixedSizeTransform):
    """timm's evaluation transform without normalisation, which happens on the device.

    Channels other than RGB of 8 bits are transformed one by one, as grey images.
    """

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, spec: PreprocessSpec) -> None:
        self.steps = _build_steps(spec, spec.mean)
        self.size = spec.input_size[1:]
        self.num_channels = spec.input_size[0]
        # they differ in the mean, which is the colour of borders
        self.channel_steps = [_build_steps(spec, (value,)) for value in spec.mean]

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return the evaluation view; ``draw`` is ignored."""
        return View(self.to_pixels(get_whole_image(lazy_image)))

    def to_pixels(self, image: WholeImage) -> Pixels:
        """Return the transformed pixels, uint8 or uint16, shape (*size, C)."""
        from finetune.data.transforms.bounded_resize import apply_steps

        if not isinstance(image, Planes):
            return np.array(apply_steps(image, self.steps))
        pairs = zip(image.images, self.channel_steps, strict=True)
        return Planes(tuple(apply_steps(*pair) for pair in pairs)).to_pixels()


def _build_steps(spec: PreprocessSpec, mean: Sequence[float]) -> list[Step]:
    """Return the steps of timm's evaluation transform for images with channels of these means."""
    from timm.data.transforms_factory import create_transform

    pipeline = create_transform(
        input_size=spec.input_size,
        is_training=False,
        interpolation=spec.interpolation,
        mean=tuple(mean),
        std=tuple(mean),
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        normalize=False,
    )
    # the last step only converts the image to a channels-first tensor
    steps: list[Step] = pipeline.transforms[:-1]
    return steps


class FlipPairTransform(FixedSizeTransform):
    """Evaluation views of an image and of its horizontal flip, stacked vertically.

    The image is flipped and not the view: a centre crop that removes an odd number of pixels is not
    exactly centred, so that a flipped file would give two other views.

    Args:
        transform: Transform of a single view.
    """

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, transform: EvalTransform) -> None:
        self.transform = transform
        height, width = transform.size
        self.size = (2 * height, width)

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return both views; ``draw`` is ignored."""
        image = get_whole_image(lazy_image)
        flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return View(np.concatenate([self.transform.to_pixels(i) for i in (image, flipped)]))


class MultiCropTransform(FixedSizeTransform):
    """Evaluation views of an image and of crops of it, stacked vertically.

    The crops are 0.8 as wide and high as the image: the centre, then the corners.

    Args:
        transform: Transform of a single view.
        num_crops: Number of crops besides the whole image, at most ``len(ANCHORS)``.
    """

    ANCHORS = ((0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
    CROP_FRACTION = 0.8

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, transform: EvalTransform, num_crops: int) -> None:
        self.transform = transform
        self.anchors = self.ANCHORS[:num_crops]
        height, width = transform.size
        self.size = ((1 + num_crops) * height, width)

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return all views; ``draw`` is ignored."""
        image = get_whole_image(lazy_image)
        crops = (self._crop(image, *anchor) for anchor in self.anchors)
        return View(np.concatenate([self.transform.to_pixels(i) for i in (image, *crops)]))

    def _crop(self, image: WholeImage, anchor_x: float, anchor_y: float) -> WholeImage:
        width, height = (max(1, round(self.CROP_FRACTION * side)) for side in image.size)
        left = round(anchor_x * (image.width - width))
        top = round(anchor_y * (image.height - height))
        return image.crop((left, top, left + width, top + height))


class RandomCropsTransform(FixedSizeTransform):
    """Evaluation views of an image and of random crops of it, stacked vertically.

    Each crop has a given area, a random position, and an aspect ratio that differs from that of the
    image by a random factor from 3/4 to 4/3. These depend on the pixels of the image and on the
    area alone, so that the views can be cached one by one.

    Args:
        transform: Transform of a single view.
        areas: Area of each crop, relative to the image.
    """

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, transform: EvalTransform, areas: Sequence[float]) -> None:
        self.transform = transform
        self.areas = tuple(areas)
        height, width = transform.size
        self.size = ((1 + len(self.areas)) * height, width)

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return all views; ``draw`` is ignored."""
        image = get_whole_image(lazy_image)
        whole = self.transform.to_pixels(image)
        seed = zlib.crc32(whole.tobytes())
        crops = [image.crop(_sample_box(image.size, area, seed)) for area in self.areas]
        return View(np.concatenate([whole, *map(self.transform.to_pixels, crops)]))


def _sample_box(size: tuple[int, int], area: float, seed: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a random box within an image of a width and height."""
    generator = np.random.default_rng((seed, round(1e6 * area)))
    limits = math.log(max(3 / 4, area)), math.log(min(4 / 3, 1 / area))
    ratio = math.exp(generator.uniform(*limits))
    width = max(1, round(size[0] * (area * ratio) ** 0.5))
    height = max(1, round(size[1] * (area / ratio) ** 0.5))
    left = int(generator.integers(size[0] - width + 1))
    top = int(generator.integers(size[1] - height + 1))
    return left, top, left + width, top + height


class IdentityTransform(FixedSizeTransform):
    """Transform of images that are stored at the network's input size.

    Args:
        size: Height and width.
    """

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return the whole image; ``draw`` is ignored."""
        return View(lazy_image.crop((0, 0, lazy_image.width, lazy_image.height), self.size))
