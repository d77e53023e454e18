"""Views of training images: Albumentations' pipelines, drawn by the sampler alone."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import albumentations as A  # noqa: N812 - the name that its own documentation uses
import cv2
import numpy as np

from finetune.data.images.lazy_image import Interpolation, Picture, Pixels
from finetune.data.transforms.color_jitter import ColourJitter
from finetune.data.transforms.eval_transform import OneSize, View
from finetune.types import Draw

_LARGEST_PX = 8192
"""Of what can be kept; a pipeline may crop to nearly nothing."""

_ZEROS = np.zeros(4, np.uint64)


class TrainTransform(OneSize):
    """An Albumentations pipeline whose draws are a pure function of (seed, draw).

    ``Compose(seed=...)`` and ``set_random_seed`` hand one seed to every step, so that all of them
    fire together; fresh generators for each sample do not, and depend on no worker or rank.

    A ``RandomResizedCrop`` or ``Resize`` at its head is done by the picture, with the box that the
    step draws: antialiased, and from no more pixels than the box needs.

    Args:
        pipeline: Ends in pixels of ``size``.
        size: Height and width.
        seed: Of all draws.
        jitter: Colours that change on the device, after the pipeline.
    """

    draws = True

    def __init__(
        self,
        pipeline: A.Compose,
        *,
        size: tuple[int, int],
        seed: int,
        jitter: ColourJitter | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.size = size
        self.seed = seed
        self.jitter = jitter
        self.colours = jitter is not None
        self.flips = _flips(pipeline)
        self.opening = opening(pipeline)
        self.needed_px = None if self.opening is None else self.opening.needed_px()
        self._steps = pipeline.transforms[1:] if self.opening else pipeline.transforms
        self._numbers = np.random.Generator(np.random.Philox(key=0))
        self._plain = random.Random(0)

    def __call__(self, picture: Picture, draw: Draw | None) -> View:
        """Return the augmented view of a draw."""
        assert draw is not None, "training images are drawn by the sampler"
        self._seed(draw)
        data = {"image": self._opened(picture)}
        if self._plain.random() < self.pipeline.p:
            for step in self._steps:
                data = step(**data)
        pixels: Pixels = data["image"]
        colour = None if self.jitter is None else self.jitter.matrix(pixels, self._numbers)
        return View(pixels, colour)

    def _seed(self, draw: Draw) -> None:
        """Put both generators at the start of a draw; new ones would cost as much as a small crop.

        The key of Philox, which counts from 0, is the draw itself (Salmon et al. 2011).
        """
        key = (self.seed << 32 | draw.epoch, draw.row << 32 | draw.repeat)
        self._plain.seed(key[0] << 64 | key[1])
        self._numbers.bit_generator.state = {
            "bit_generator": "Philox",
            "state": {"counter": _ZEROS, "key": np.array(key, np.uint64)},
            "buffer": _ZEROS,
            "buffer_pos": 4,  # used up: the first number is made of the counter
            "has_uint32": 0,
            "uinteger": 0,
        }
        self.pipeline.set_random_state(self._numbers, self._plain)

    def _opened(self, picture: Picture) -> Pixels:
        """Return what the steps after the opening one get."""
        if self.opening is None:
            return np.asarray(picture.image())
        return picture.crop(
            self.opening.box(picture.height, picture.width), self.opening.size, self.opening.mode
        )


class GrowingTransform:
    """Training transforms that differ from epoch to epoch in the size of what they return.

    Args:
        epochs: That of each epoch; later ones take the last.
    """

    draws = True

    def __init__(self, epochs: Sequence[TrainTransform]) -> None:
        self.epochs = epochs
        largest = max(epochs, key=lambda transform: transform.size)
        self.size, self.colours, self.flips = largest.size, largest.colours, largest.flips
        sides = [transform.needed_px for transform in epochs]
        self.needed_px = None if None in sides else max(side for side in sides if side)

    def size_at(self, epoch: int) -> tuple[int, int]:
        """Return height and width of what it returns in an epoch."""
        return self._of(epoch).size

    def __call__(self, picture: Picture, draw: Draw | None) -> View:
        """Return the view of a draw at the size of its epoch."""
        assert draw is not None, "training images are drawn by the sampler"
        return self._of(draw.epoch)(picture, draw)

    def _of(self, epoch: int) -> TrainTransform:
        return self.epochs[min(epoch, len(self.epochs) - 1)]


@dataclass(frozen=True, slots=True)
class Opening:
    """A first step that cuts a box and resizes it, so that the rest of the image is not needed.

    Attributes:
        step: Draws the box.
        size: Height and width after it.
        mode: Kernel; antialiased, whatever the step itself would do.
        smallest_share: Share of the image's area that the smallest box covers.
    """

    step: A.BasicTransform
    size: tuple[int, int]
    mode: Interpolation
    smallest_share: float

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom of what is cut from a full image."""
        if isinstance(self.step, A.Resize):
            return 0, 0, width, height
        drawn = self.step.get_params_dependent_on_data({"shape": (height, width, 3)}, {})
        left, top, right, bottom = drawn["crop_coords"]
        return left, top, right, bottom

    def needed_px(self) -> int:
        """Return the shorter side from which no square crop is enlarged, at most 8192."""
        if self.smallest_share == 0:
            return _LARGEST_PX
        return min(_LARGEST_PX, math.ceil(max(self.size) / math.sqrt(self.smallest_share)))


def opening(pipeline: A.Compose) -> Opening | None:
    """Return the first step of a pipeline if it cuts a box and resizes it, always."""
    first = pipeline.transforms[0] if pipeline.transforms else None
    modes: dict[int, Interpolation] = {
        cv2.INTER_LINEAR: "bilinear",
        cv2.INTER_AREA: "bilinear",
        cv2.INTER_CUBIC: "bicubic",
        cv2.INTER_LANCZOS4: "bicubic",
    }
    if pipeline.p < 1 or first is None or first.p < 1:
        return None
    if getattr(first, "interpolation", None) not in modes:
        return None
    if type(first) is A.RandomResizedCrop:
        height, width = first.size
        return Opening(first, (height, width), modes[first.interpolation], first.scale[0])
    if type(first) is A.Resize:
        return Opening(first, (first.height, first.width), modes[first.interpolation], 1.0)
    return None


def _flips(step: A.BasicTransform | A.BaseCompose) -> bool:
    if step.p == 0:
        return False
    if isinstance(step, A.BaseCompose):
        return any(_flips(child) for child in step.transforms)
    return isinstance(step, A.HorizontalFlip | A.D4 | A.SquareSymmetry)
