"""Training transforms: Albumentations pipelines whose randomness depends on the draw alone."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import albumentations as A  # noqa: N812 - the name that its documentation uses
import cv2
import numpy as np

from finetune.data.images.lazy_image import LazyImage
from finetune.data.images.multichannel import get_whole_pixels
from finetune.data.images.resample import Interpolation, Pixels
from finetune.data.transforms.color_jitter import ColorJitter
from finetune.data.transforms.eval_transform import FixedSizeTransform, View
from finetune.types import Draw

_MAX_SIDE_PX = 8192
"""Largest ``min_side_px``; the smallest crop of a pipeline may be arbitrarily small."""

_ZEROS = np.zeros(4, np.uint64)


class TrainTransform(FixedSizeTransform):
    """Albumentations pipeline whose views are a pure function of (seed, draw).

    ``Compose(seed=...)`` and ``set_random_seed`` give one seed to all steps, so that all of them
    are applied together; generators per draw avoid this, and do not depend on workers or ranks.

    An initial ``RandomResizedCrop`` or ``Resize`` is computed by ``LazyImage.crop`` with the box
    that the step draws: antialiased, and from no more pixels than the box needs.

    Args:
        pipeline: Pipeline that returns pixels of ``size``.
        size: Height and width.
        seed: Random seed of all draws.
        jitter: Color jitter, applied on the device after the pipeline; None for none.
    """

    is_random = True

    def __init__(
        self,
        pipeline: A.Compose,
        *,
        size: tuple[int, int],
        seed: int,
        jitter: ColorJitter | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.size = size
        self.seed = seed
        self.jitter = jitter
        self.has_color_matrix = jitter is not None
        self.has_flip = _has_flip(pipeline)
        self.initial_crop = find_initial_crop(pipeline)
        self.min_side_px = (
            None if self.initial_crop is None else self.initial_crop.compute_min_side_px()
        )
        self._steps = pipeline.transforms[1:] if self.initial_crop else pipeline.transforms
        self._numpy_generator = np.random.Generator(np.random.Philox(key=0))
        self._python_generator = random.Random(0)

    def __call__(self, lazy_image: LazyImage, draw: Draw | None) -> View:
        """Return the augmented view of a draw."""
        assert draw is not None, "training images need a draw of the sampler"
        self._seed_generators(draw)
        loaded = self._load_pixels(lazy_image)
        # Albumentations knows uint8, and floats from 0 to 1
        is_deep = loaded.dtype == np.uint16
        data = {"image": loaded.astype(np.float32) / 65_535 if is_deep else loaded}
        if self._python_generator.random() < self.pipeline.p:
            for step in self._steps:
                data = step(**data)
        pixels: Pixels = data["image"]
        if is_deep:
            pixels = np.rint(pixels.clip(0, 1) * 65_535).astype(np.uint16)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        color_matrix = (
            None
            if self.jitter is None
            else self.jitter.sample_matrix(pixels, self._numpy_generator)
        )
        return View(pixels, color_matrix)

    def _seed_generators(self, draw: Draw) -> None:
        """Reset both generators to the start of a draw; new ones would cost as much as a crop.

        The draw is the key of Philox, whose counter starts at 0 (Salmon et al. 2011).
        """
        key = (self.seed << 32 | draw.epoch, draw.row << 32 | draw.repeat)
        self._python_generator.seed(key[0] << 64 | key[1])
        self._numpy_generator.bit_generator.state = {
            "bit_generator": "Philox",
            "state": {"counter": _ZEROS, "key": np.array(key, np.uint64)},
            "buffer": _ZEROS,
            "buffer_pos": 4,  # empty buffer: the first number is computed from the counter
            "has_uint32": 0,
            "uinteger": 0,
        }
        self.pipeline.set_random_state(self._numpy_generator, self._python_generator)

    def _load_pixels(self, lazy_image: LazyImage) -> Pixels:
        """Return the input of the steps after the initial crop."""
        if self.initial_crop is None:
            return get_whole_pixels(lazy_image)
        return lazy_image.crop(
            self.initial_crop.sample_box(lazy_image.height, lazy_image.width),
            self.initial_crop.size,
            self.initial_crop.mode,
        )


class ProgressiveResizeTransform:
    """Training transform whose size changes with the epoch.

    Args:
        transforms: Transform of each epoch; the last one is used in later epochs.
    """

    is_random = True

    def __init__(self, transforms: Sequence[TrainTransform]) -> None:
        self.transforms = transforms
        largest = max(transforms, key=lambda transform: transform.size)
        self.size, self.has_color_matrix, self.has_flip = (
            largest.size,
            largest.has_color_matrix,
            largest.has_flip,
        )
        sides = [transform.min_side_px for transform in transforms]
        self.min_side_px = None if None in sides else max(side for side in sides if side)

    def get_size(self, epoch: int) -> tuple[int, int]:
        """Return height and width of the pixels in an epoch."""
        return self._get_transform(epoch).size

    def __call__(self, lazy_image: LazyImage, draw: Draw | None) -> View:
        """Return the view of a draw at the size of its epoch."""
        assert draw is not None, "training images need a draw of the sampler"
        return self._get_transform(draw.epoch)(lazy_image, draw)

    def _get_transform(self, epoch: int) -> TrainTransform:
        return self.transforms[min(epoch, len(self.transforms) - 1)]


@dataclass(frozen=True, slots=True)
class InitialCrop:
    """First step of a pipeline, if it crops a box and resizes it; only the box is decoded.

    Attributes:
        step: Step that draws the box.
        size: Height and width after the step.
        mode: Interpolation kernel; always antialiased, unlike the step's own.
        min_area_fraction: Smallest area of the box as a fraction of the image's area.
    """

    step: A.BasicTransform
    size: tuple[int, int]
    mode: Interpolation
    min_area_fraction: float

    def sample_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of a random box of a full image."""
        if isinstance(self.step, A.Resize):
            return 0, 0, width, height
        params = self.step.get_params_dependent_on_data({"shape": (height, width, 3)}, {})
        left, top, right, bottom = params["crop_coords"]
        return left, top, right, bottom

    def compute_min_side_px(self) -> int:
        """Return the shorter side in pixels from which no square crop is enlarged, at most 8192."""
        if self.min_area_fraction == 0:
            return _MAX_SIDE_PX
        return min(_MAX_SIDE_PX, math.ceil(max(self.size) / math.sqrt(self.min_area_fraction)))


def find_initial_crop(pipeline: A.Compose) -> InitialCrop | None:
    """Return the first step of a pipeline if it always crops a box and resizes it, else None."""
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
        return InitialCrop(first, (height, width), modes[first.interpolation], first.scale[0])
    if type(first) is A.Resize:
        return InitialCrop(first, (first.height, first.width), modes[first.interpolation], 1.0)
    return None


def _has_flip(step: A.BasicTransform | A.BaseCompose) -> bool:
    """Return whether a step, or any step inside it, may flip images horizontally."""
    if step.p == 0:
        return False
    if isinstance(step, A.BaseCompose):
        return any(_has_flip(child) for child in step.transforms)
    return isinstance(step, A.HorizontalFlip | A.D4 | A.SquareSymmetry)
