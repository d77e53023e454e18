"""Images of the plain fine-tuning loop: pixels in memory, crops, batches."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from scripts.benchmarks.lib.comparison.image_folders import Files

MIN_CROP_SCALE = 0.35
"""Smallest area of a random crop, as a fraction of the image."""

_MARGIN = 1.15
"""Shorter side of the images in memory divided by that of the crops."""

_VAL_PART = 5


def load_images(files: Files, *, side: int) -> tuple[list[Tensor], NDArray[np.int64]]:
    """Return images (H, W, 3), uint8, and their class indices, class by class.

    Args:
        files: Files of each class.
        side: Side of the crops in pixels; the shorter side of the images is 1.15 times as long.
    """
    images, labels = [], []
    for index, paths in enumerate(files.values()):
        for path in paths:
            with Image.open(path) as file:
                image = file.convert("RGB")
            scale = side * _MARGIN / min(image.size)
            width, height = (max(side, round(length * scale)) for length in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            images.append(torch.from_numpy(np.array(image)))
            labels.append(index)
    return images, np.array(labels, np.int64)


def draw_validation_rows(labels: NDArray[np.int64], *, seed: int) -> NDArray[np.bool_]:
    """Return which images are for validation: a fifth of each class, at least one."""
    generator = np.random.default_rng(seed)
    is_val = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        generator.shuffle(rows)
        is_val[rows[: max(1, len(rows) // _VAL_PART)]] = True
    return is_val


def crop_centre(image: Tensor, *, side: int) -> Tensor:
    """Return the centre of an image, shape (side, side, 3)."""
    height, width, _ = image.shape
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def crop_randomly(
    image: Tensor, generator: np.random.Generator, *, side: int, is_mirrored: bool
) -> Tensor:
    """Return a random crop, resized to (side, side, 3), float32.

    Args:
        image: Image of shape (H, W, 3), uint8.
        generator: Source of the draws.
        side: Side of the result in pixels.
        is_mirrored: Whether half of the crops are mirrored.
    """
    height, width, _ = image.shape
    for _ in range(10):
        area = height * width * (MIN_CROP_SCALE + (1 - MIN_CROP_SCALE) * generator.random())
        ratio = math.exp((generator.random() * 2 - 1) * math.log(4 / 3))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if crop_width <= width and crop_height <= height:
            break
    else:
        crop_width = crop_height = min(height, width)
    top = int(generator.integers(0, height - crop_height + 1))
    left = int(generator.integers(0, width - crop_width + 1))
    crop = image[top : top + crop_height, left : left + crop_width]
    resized = interpolate(
        crop.permute(2, 0, 1)[None].float(), size=(side, side), mode="bilinear", antialias=True
    )[0].permute(1, 2, 0)
    return resized.flip(1) if is_mirrored and generator.random() < 0.5 else resized


def stack_batch(images: Sequence[Tensor], *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return the normalised batch (B, 3, side, side) of images (side, side, 3) in [0, 255]."""
    scaled = (torch.stack(list(images)).float() - 255 * torch.tensor(mean)) / (
        255 * torch.tensor(std)
    )
    return scaled.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
