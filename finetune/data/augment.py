"""Image transforms: Albumentations for training, timm's own for evaluation; the door to both."""

import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.errors import ConfigError
from finetune.types import Draw, PreprocessSpec

# Without this albumentations asks the package index for its newest release, at every import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A  # noqa: N812 - the name that its own documentation uses
import cv2

Pixels = NDArray[np.uint8]


class Transform(Protocol):
    """From an RGB image to pixels of the network's input size."""

    def __call__(self, image: Image.Image, draw: Draw | None) -> Pixels:
        """Return uint8 pixels, shape (H, W, C)."""


class EvalTransform:
    """timm's own evaluation transform up to normalisation, which happens on the device."""

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

    def __call__(self, image: Image.Image, draw: Draw | None = None) -> Pixels:
        """Return uint8 pixels, shape (H, W, C); ``draw`` changes nothing."""
        for step in self.steps:
            image = step(image)
        return np.array(image)


class TrainTransform:
    """An Albumentations pipeline whose draws are a pure function of (seed, draw).

    ``Compose(seed=...)`` and ``set_random_seed`` hand one seed to every step, so that all of them
    fire together; fresh generators for each sample do not, and depend on no worker or rank.
    """

    def __init__(self, pipeline: A.Compose, *, seed: int) -> None:
        self.pipeline = pipeline
        self.seed = seed

    def __call__(self, image: Image.Image, draw: Draw | None) -> Pixels:
        """Return augmented uint8 pixels, shape (H, W, C)."""
        assert draw is not None, "training images are drawn by the sampler"
        key = np.random.SeedSequence([self.seed, draw.epoch, draw.row, draw.repeat])
        state = int(key.generate_state(1)[0])
        self.pipeline.set_random_state(np.random.default_rng(state), random.Random(state))
        pixels: Pixels = self.pipeline(image=np.asarray(image))["image"]
        return pixels if pixels.flags.writeable else pixels.copy()


def _crop(size: int, smallest_share: float) -> A.BasicTransform:
    """Return a random crop that is antialiased where it shrinks the image."""
    return A.RandomResizedCrop(
        (size, size), scale=(smallest_share, 1.0), area_for_downscale="image"
    )


def light(size: int) -> A.Compose:
    """Crop at least half of the image, mirror."""
    return A.Compose([_crop(size, 0.5), A.HorizontalFlip(p=0.5)])


def medium(size: int) -> A.Compose:
    """Crop at least a third of the image, mirror, shift colours a little."""
    return A.Compose(
        [
            _crop(size, 0.35),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03, p=0.5),
        ]
    )


def strong(size: int) -> A.Compose:
    """Crop, mirror, turn, shift colours, blur and cut holes, for long runs on few images."""
    return A.Compose(
        [
            _crop(size, 0.2),
            A.HorizontalFlip(p=0.5),
            A.Rotate(limit=15, border_mode=cv2.BORDER_REFLECT_101, p=0.3),
            A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05, p=0.8),
            A.ToGray(p=0.1),
            A.GaussianBlur(blur_limit=(3, 5), p=0.1),
            A.CoarseDropout(
                num_holes_range=(1, 2), hole_height_range=(0.1, 0.3), hole_width_range=(0.1, 0.3)
            ),
        ]
    )


AUGMENTATIONS: Mapping[str, Callable[[int], A.Compose] | None] = {
    "none": None,
    "light": light,
    "medium": medium,
    "strong": strong,
}


def train_transform(name: str, *, spec: PreprocessSpec, seed: int) -> Transform:
    """Return the training transform of a preset, or of a pipeline saved with Albumentations.

    Raises:
        ConfigError: The file is missing, is no pipeline, or does what the device does.
    """
    size = spec.input_size[-1]
    if name in AUGMENTATIONS:
        preset = AUGMENTATIONS[name]
        return EvalTransform(spec) if preset is None else TrainTransform(preset(size), seed=seed)
    pipeline = load_pipeline(Path(name))
    _check_output(pipeline, name, size)
    return TrainTransform(pipeline, seed=seed)


def load_pipeline(path: Path) -> A.Compose:
    """Return a pipeline from the file that ``albumentations.save`` wrote.

    Raises:
        ConfigError: The file is missing or is no pipeline, an argument of it is unknown to this
            release, or it normalises, which happens on the device.
    """
    if not path.is_file():
        raise ConfigError(f"augment.name: {path} does not exist. Check the path.")
    data_format = "json" if path.suffix.lower() == ".json" else "yaml"
    try:
        with warnings.catch_warnings():
            # albumentations only warns of arguments that it does not know, and drops them
            warnings.simplefilter("error", UserWarning)
            loaded: Any = A.load(path, data_format=data_format)
    except Exception as error:
        raise ConfigError(
            f"augment.name: {path} is no pipeline that albumentations {A.__version__} can load: "
            f"{error}. Save it again with albumentations.save(pipeline, '{path.name}')."
        ) from error
    pipeline = loaded if isinstance(loaded, A.Compose) else A.Compose([loaded])
    for step in _steps_of(pipeline):
        if type(step).__name__ in ("Normalize", "ToTensorV2", "ToTensor3D", "ToFloat"):
            raise ConfigError(
                f"augment.name: {path} contains {type(step).__name__}, but finetune normalises by "
                f"itself, as the weights expect. Remove that step and save it again."
            )
    return pipeline


def _steps_of(step: Any) -> Iterator[Any]:
    """Yield every step, those inside of OneOf, SomeOf and Sequential too."""
    for child in getattr(step, "transforms", ()):
        yield child
        yield from _steps_of(child)


def _check_output(pipeline: A.Compose, name: str, size: int) -> None:
    """Try several draws, because a step may be applied by chance only."""
    transform = TrainTransform(pipeline, seed=0)
    shapes = ((size * 2, size * 3), (size * 3, size * 2))
    for repeat, (height, width) in enumerate(shapes * 8):
        image = Image.new("RGB", (width, height))
        try:
            out = transform(image, Draw(0, 0, repeat))
        except Exception as error:
            raise ConfigError(
                f"augment.name: {name} fails on a {width}x{height} image: {error}"
            ) from error
        if out.shape != (size, size, 3) or out.dtype != np.uint8:
            raise ConfigError(
                f"augment.name: {name} turns a {width}x{height} image into {out.dtype} pixels of "
                f"shape {out.shape}, but uint8 of ({size}, {size}, 3) is needed. End it with "
                f"RandomResizedCrop(({size}, {size})) or change data.image_size."
            )


def digits_pipeline(size: int) -> A.Compose:
    """Shift, turn and scale a little, and never mirror: a mirrored digit is none."""
    return A.Compose(
        [
            A.Resize(size, size),
            A.Affine(scale=(0.9, 1.1), rotate=(-10, 10), translate_percent=(-0.08, 0.08), p=0.9),
        ]
    )


def save_pipeline(pipeline: A.Compose, path: Path) -> None:
    """Write a pipeline with Albumentations' own ``save``, as JSON."""
    A.save(pipeline, path, data_format="json")
