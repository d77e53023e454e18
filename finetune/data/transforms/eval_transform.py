"""From a picture to pixels of the network's input size: timm's own way, and views of it."""

from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from finetune.data.images.lazy_image import Picture, Pixels
from finetune.data.transforms.color_jitter import ColourMatrix
from finetune.types import Draw, PreprocessSpec


class View(NamedTuple):
    """What a transform makes of a picture.

    Attributes:
        pixels: uint8, shape (H, W, 3).
        colour: What happens to its colours on the device; None for nothing.
    """

    pixels: Pixels
    colour: ColourMatrix | None = None


class Transform(Protocol):
    """From a picture to pixels that the network takes.

    Attributes:
        size: Largest height and width of what it returns.
        colours: Whether its views carry colour matrices.
        draws: Whether its views depend on the draw, so that they cannot be stored as they are.
        flips: Whether it shows images in a mirror, so that this changes no class.
        needed_px: Shorter side of a picture from which nothing is enlarged; None where it may need
            every pixel.
    """

    size: tuple[int, int]
    colours: bool
    draws: bool
    flips: bool
    needed_px: int | None

    def size_at(self, epoch: int) -> tuple[int, int]:
        """Return height and width of what it returns in an epoch."""

    def __call__(self, picture: Picture, draw: Draw | None) -> View:
        """Return a view of the picture."""


class OneSize:
    """A transform whose size does not follow the epoch."""

    size: tuple[int, int]

    def size_at(self, epoch: int) -> tuple[int, int]:
        """Return height and width of what it returns in an epoch."""
        del epoch
        return self.size


class EvalTransform(OneSize):
    """timm's own evaluation transform up to normalisation, which happens on the device."""

    colours = draws = flips = False
    needed_px: int | None = None

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

    def __call__(self, picture: Picture, draw: Draw | None = None) -> View:
        """Return the view that every evaluation takes; ``draw`` changes nothing."""
        return View(self.pixels(picture.image()))

    def pixels(self, image: Image.Image) -> Pixels:
        """Return uint8 pixels of ``size``."""
        for step in self.steps:
            image = step(image)
        return np.array(image)


class BothWays(OneSize):
    """The evaluation's view of a picture, and below it that of the picture in a mirror.

    Mirrored is the whole picture and not the view: a centre crop that leaves an odd number of
    pixels is not in the centre, and a mirrored file would give two other views.

    Args:
        transform: Of one view.
    """

    colours = draws = flips = False
    needed_px: int | None = None

    def __init__(self, transform: EvalTransform) -> None:
        self.transform = transform
        height, width = transform.size
        self.size = (2 * height, width)

    def __call__(self, picture: Picture, draw: Draw | None = None) -> View:
        """Return both views; ``draw`` changes nothing."""
        image = picture.image()
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return View(np.concatenate([self.transform.pixels(i) for i in (image, mirrored)]))


class Zoomed(OneSize):
    """The evaluation's view of a picture, and below it those of parts of it, one behind the other.

    The parts are four fifths as wide and as high as the picture: its middle, then its corners.

    Args:
        transform: Of one view.
        parts: How many, at most as many as ``ANCHORS``.
    """

    ANCHORS = ((0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
    SHARE = 0.8

    colours = draws = flips = False
    needed_px: int | None = None

    def __init__(self, transform: EvalTransform, parts: int) -> None:
        self.transform = transform
        self.anchors = self.ANCHORS[:parts]
        height, width = transform.size
        self.size = ((1 + parts) * height, width)

    def __call__(self, picture: Picture, draw: Draw | None = None) -> View:
        """Return all views; ``draw`` changes nothing."""
        image = picture.image()
        parts = (self._part(image, across, down) for across, down in self.anchors)
        return View(np.concatenate([self.transform.pixels(one) for one in (image, *parts)]))

    def _part(self, image: Image.Image, across: float, down: float) -> Image.Image:
        width, height = (max(1, round(self.SHARE * side)) for side in image.size)
        left = round(across * (image.width - width))
        top = round(down * (image.height - height))
        return image.crop((left, top, left + width, top + height))


class AsStored(OneSize):
    """Takes pictures that are stored at the size that they are needed at.

    Args:
        size: Height and width.
    """

    colours = draws = flips = False
    needed_px: int | None = None

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, picture: Picture, draw: Draw | None = None) -> View:
        """Return all pixels; ``draw`` changes nothing."""
        return View(picture.crop((0, 0, picture.width, picture.height), self.size))
