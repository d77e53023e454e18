"""Augmentation presets, and pipelines saved with Albumentations."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations as A  # noqa: N812 - the name that its documentation uses
import cv2
import numpy as np

from finetune.data.images.multichannel import build_stored_image
from finetune.data.transforms.color_jitter import ColorJitter
from finetune.data.transforms.eval_transform import EvalTransform, Transform
from finetune.data.transforms.train_transform import ProgressiveResizeTransform, TrainTransform
from finetune.errors import ConfigError
from finetune.system.given_paths import check_pipeline_path
from finetune.types import Draw, PreprocessSpec
from finetune.units import format_count


@dataclass(frozen=True, slots=True)
class Geometry:
    """Flips, turns and crops of a preset.

    Attributes:
        hflip: Whether half of the images are flipped horizontally.
        vflip: Whether half of the images are flipped vertically.
        rot90: Whether images are rotated by a random multiple of 90 degrees.
        min_crop_scale: Smallest area of a random crop, as a fraction of the image's area; 1 resizes
            whole images. None for that of the preset.
    """

    hflip: bool = True
    vflip: bool = False
    rot90: bool = False
    min_crop_scale: float | None = None


@dataclass(frozen=True, slots=True)
class Preset:
    """Augmentation of a name.

    Attributes:
        min_crop_scale: Smallest area of a random crop, as a fraction of the image's area.
        steps: Steps after the crop and the flips.
        jitter: Color jitter that is applied on the device; None for none.
    """

    min_crop_scale: float
    steps: Callable[[], Sequence[A.BasicTransform]] = tuple
    jitter: ColorJitter | None = None

    def build_pipeline(self, size: int, geometry: Geometry) -> A.Compose:
        """Return the pipeline that a worker applies, for square images of ``size`` pixels."""
        given = geometry.min_crop_scale
        min_scale = self.min_crop_scale if given is None else given
        crop = (
            A.Resize(size, size)
            if min_scale == 1
            else A.RandomResizedCrop((size, size), scale=(min_scale, 1.0))
        )
        flips = (
            (geometry.hflip, A.HorizontalFlip(p=0.5)),
            (geometry.vflip, A.VerticalFlip(p=0.5)),
            (geometry.rot90, A.RandomRotate90(p=1.0)),
        )
        return A.Compose([crop, *(step for is_on, step in flips if is_on), *self.steps()])


def _build_strong_steps() -> Sequence[A.BasicTransform]:
    """Return rotation by a few degrees, blur and dropout."""
    return (
        A.Rotate(limit=15, border_mode=cv2.BORDER_REFLECT_101, p=0.3),
        A.GaussianBlur(blur_limit=(3, 5), p=0.1),
        A.CoarseDropout(
            num_holes_range=(1, 2), hole_height_range=(0.1, 0.3), hole_width_range=(0.1, 0.3)
        ),
    )


AUGMENTATIONS: Mapping[str, Preset | None] = {
    "none": None,
    "light": Preset(min_crop_scale=0.5),
    "medium": Preset(
        min_crop_scale=0.35,
        jitter=ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03, p=0.5),
    ),
    "strong": Preset(
        min_crop_scale=0.2,
        steps=_build_strong_steps,
        jitter=ColorJitter(
            brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05, p=0.8, grayscale_p=0.1
        ),
    ),
}
"""light: crops and flips; medium: also color jitter; strong: for long runs on few images."""

_DEFAULT_GEOMETRY = Geometry()


def create_train_transform(
    name: str,
    *,
    spec: PreprocessSpec,
    seed: int,
    sizes: Sequence[int] = (),
    geometry: Geometry = _DEFAULT_GEOMETRY,
) -> Transform:
    """Build the training transform of a preset, or of a pipeline saved with Albumentations.

    Args:
        name: Name of the preset, or path of the pipeline's file.
        spec: Preprocessing of the network.
        seed: Random seed of all draws.
        sizes: Side of the images in each epoch; the network's side in all epochs if empty.
        geometry: Flips, turns and crops of a preset; does not apply to a saved pipeline.

    Raises:
        ConfigError: The file is missing, is not a pipeline, normalises, or cannot produce the
            sizes.
    """
    side = spec.input_size[-1]
    size = (side, side)
    preset = AUGMENTATIONS.get(name)
    if preset is not None:
        by_size = {
            px: TrainTransform(
                preset.build_pipeline(px, geometry),
                size=(px, px),
                seed=seed,
                # hue and saturation are defined for RGB, and bands have no common brightness
                jitter=preset.jitter if spec.input_size[0] in (1, 3) else None,
            )
            for px in {*sizes, side}
        }
        if not sizes:
            return by_size[side]
        return ProgressiveResizeTransform([by_size[px] for px in sizes])
    if any(px != side for px in sizes):
        raise ConfigError(
            f"data.train_image_size cannot apply to augment.name={name}, which only produces "
            f"images of {side} pixels. Remove it, or use augment.name=light, medium or strong."
        )
    if name in AUGMENTATIONS:
        return EvalTransform(spec)
    transform = TrainTransform(load_pipeline(Path(name)), size=size, seed=seed)
    _check_output(transform, name, num_channels=spec.input_size[0])
    return transform


def load_pipeline(path: Path) -> A.Compose:
    """Read a pipeline from a file that ``albumentations.save`` wrote.

    Raises:
        ConfigError: The file is missing or not a pipeline, has an argument that this release does
            not know, or normalises, which happens on the device.
    """
    check_pipeline_path(path)
    data_format = "json" if path.suffix.lower() == ".json" else "yaml"
    try:
        with warnings.catch_warnings():
            # albumentations only warns of unknown arguments, and ignores them
            warnings.simplefilter("error", UserWarning)
            loaded: Any = A.load(path, data_format=data_format)
    except Exception as error:
        raise ConfigError(
            f"augment.name: albumentations {A.__version__} cannot load a pipeline from {path}: "
            f"{error}. Save it again with albumentations.save(pipeline, '{path.name}')."
        ) from error
    pipeline = loaded if isinstance(loaded, A.Compose) else A.Compose([loaded])
    for step in _iterate_steps(pipeline):
        if type(step).__name__ in ("Normalize", "ToTensorV2", "ToTensor3D", "ToFloat"):
            raise ConfigError(
                f"augment.name: {path} contains {type(step).__name__}, but finetune normalises "
                f"images itself, as the weights expect. Remove this step and save it again."
            )
    return pipeline


def _iterate_steps(step: Any) -> Iterator[Any]:
    """Yield all steps, including those inside OneOf, SomeOf and Sequential."""
    for child in getattr(step, "transforms", ()):
        yield child
        yield from _iterate_steps(child)


def _check_output(transform: TrainTransform, name: str, *, num_channels: int) -> None:
    """Check the output of several draws, because steps are applied at random.

    Raises:
        ConfigError: The pipeline fails, or returns pixels of another shape or dtype.
    """
    side = transform.size[0]
    shapes = ((side * 2, side * 3), (side * 3, side * 2))
    for repeat, (height, width) in enumerate(shapes * 8):
        pixels = np.zeros((height, width, num_channels), np.uint8)
        blank = build_stored_image(pixels, height=height, width=width)
        try:
            output = transform(blank, Draw(0, 0, repeat)).pixels
        except Exception as error:
            raise ConfigError(
                f"augment.name: {name} fails on a {width}x{height} image of "
                f"{format_count(num_channels, 'channel')}: {error}"
            ) from error
        if output.shape != (side, side, num_channels) or output.dtype != np.uint8:
            raise ConfigError(
                f"augment.name: {name} converts a {width}x{height} image to {output.dtype} pixels "
                f"of shape {output.shape}, but uint8 of ({side}, {side}, {num_channels}) is "
                f"needed. End it with RandomResizedCrop(({side}, {side})) or change "
                f"data.image_size."
            )


def build_digits_pipeline(size: int) -> A.Compose:
    """Build small shifts, rotations and scaling without flips: a flipped digit is not a digit."""
    return A.Compose(
        [
            A.Resize(size, size),
            A.Affine(scale=(0.9, 1.1), rotate=(-10, 10), translate_percent=(-0.08, 0.08), p=0.9),
        ]
    )


def save_pipeline(pipeline: A.Compose, path: Path) -> None:
    """Write a pipeline as JSON with ``albumentations.save``."""
    A.save(pipeline, path, data_format="json")
