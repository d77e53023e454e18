"""From a picture to pixels of the network's input size: timm's own way, and views of it."""

from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from finetune.data.images.lazy_image import LazyImage
from finetune.data.images.resample import Pixels
from finetune.data.transforms.color_jitter import ColorMatrix
from finetune.types import Draw, PreprocessSpec


class View(NamedTuple):
    """What a transform makes of a picture.

    Attributes:
        pixels: uint8, shape (H, W, 3).
        color_matrix: What happens to its colours on the device; None for nothing.
    """

    pixels: Pixels
    color_matrix: ColorMatrix | None = None


class Transform(Protocol):
    """From a picture to pixels that the network takes.

    Attributes:
        size: Largest height and width of what it returns.
        has_color_matrix: Whether its views carry colour matrices.
        is_random: Whether its views depend on the draw, so that they cannot be stored as they are.
        has_flip: Whether it shows images in a mirror, so that this changes no class.
        min_side_px: Shorter side of a picture from which nothing is enlarged; None where it may need
            every pixel.
    """

    size: tuple[int, int]
    has_color_matrix: bool
    is_random: bool
    has_flip: bool
    min_side_px: int | None

    def get_size(self, epoch: int) -> tuple[int, int]:
        """Return height and width of what it returns in an epoch."""

    def __call__(self, lazy_image: LazyImage, draw: Draw | None) -> View:
        """Return a view of the picture."""


class FixedSizeTransform:
    """A transform whose size does not follow the epoch."""

    size: tuple[int, int]

    def get_size(self, epoch: int) -> tuple[int, int]:
        """Return height and width of what it returns in an epoch."""
        del epoch
        return self.size


class EvalTransform(FixedSizeTransform):
    """timm's own evaluation transform up to normalisation, which happens on the device."""

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, spec: PreprocessSpec) -> None:
        from timm.data.transforms_factory import create_transform

        pipeline = create_transform(
            input_size=spec.input_size,
            is_training=False,
            interpolation=spec.interpolation,
            mean=spec.mean,
            std=spec.std,
            crop_pct=spec.crop_pct,
            crop_mode=spec.crop_mode,
            normalize=False,
        )
        # the last step only turns the image into a tensor with channels first
        self.steps = pipeline.transforms[:-1]
        self.size = spec.input_size[1:]

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return the view that every evaluation takes; ``draw`` changes nothing."""
        return View(self.to_pixels(lazy_image.to_pil()))

    def to_pixels(self, image: Image.Image) -> Pixels:
        """Return uint8 pixels of ``size``."""
        for step in self.steps:
            image = step(image)
        return np.array(image)


class FlipPairTransform(FixedSizeTransform):
    """The evaluation's view of a picture, and below it that of the picture in a mirror.

    Mirrored is the whole picture and not the view: a centre crop that leaves an odd number of
    pixels is not in the centre, and a mirrored file would give two other views.

    Args:
        transform: Of one view.
    """

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, transform: EvalTransform) -> None:
        self.transform = transform
        height, width = transform.size
        self.size = (2 * height, width)

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return both views; ``draw`` changes nothing."""
        image = lazy_image.to_pil()
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return View(np.concatenate([self.transform.to_pixels(i) for i in (image, mirrored)]))


class MultiCropTransform(FixedSizeTransform):
    """The evaluation's view of a picture, and below it those of parts of it, one behind the other.

    The parts are four fifths as wide and as high as the picture: its middle, then its corners.

    Args:
        transform: Of one view.
        parts: How many, at most as many as ``ANCHORS``.
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
        """Return all views; ``draw`` changes nothing."""
        image = lazy_image.to_pil()
        parts = (self._crop(image, across, down) for across, down in self.anchors)
        return View(np.concatenate([self.transform.to_pixels(one) for one in (image, *parts)]))

    def _crop(self, image: Image.Image, anchor_x: float, anchor_y: float) -> Image.Image:
        width, height = (max(1, round(self.CROP_FRACTION * side)) for side in image.size)
        left = round(anchor_x * (image.width - width))
        top = round(anchor_y * (image.height - height))
        return image.crop((left, top, left + width, top + height))


class IdentityTransform(FixedSizeTransform):
    """Takes pictures that are stored at the size that they are needed at.

    Args:
        size: Height and width.
    """

    has_color_matrix = is_random = has_flip = False
    min_side_px: int | None = None

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, lazy_image: LazyImage, draw: Draw | None = None) -> View:
        """Return all pixels; ``draw`` changes nothing."""
        return View(lazy_image.crop((0, 0, lazy_image.width, lazy_image.height), self.size))
