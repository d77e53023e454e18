"""Sheet of training images as their transform changes them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from finetune.commands.report.photos.sprite_sheet import shrink
from finetune.data.dataset import ImageDataset, load_view
from finetune.data.images.resample import Pixels
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import DataError
from finetune.models.classifier import normalise
from finetune.types import Draw, PreprocessSpec

NUM_IMAGES = 6
NUM_DRAWS = 5
"""Augmented views of an image."""

_TILE_PX, _GAP_PX, _WIDE_GAP_PX = 112, 4, 12


def draw_augmented_sheet(
    dataset: ImageDataset,
    spec: PreprocessSpec,
    *,
    seed: int,
    num_images: int = NUM_IMAGES,
    num_draws: int = NUM_DRAWS,
) -> Image.Image | None:
    """Return a sheet with a row for each image: as validation sees it, then augmented views.

    The views are those that the first epochs draw, with the changes of color that are computed on
    the device. Images that cannot be read are left out.

    Args:
        dataset: Training images with their transform.
        spec: Preprocessing of the network.
        seed: Seed of the choice of images, of different classes as far as there are.
        num_images: Images.
        num_draws: Augmented views of each.

    Returns:
        None where the transform does not change images, or none can be read.
    """
    if not dataset.transform.is_random:
        return None
    rows: list[list[Image.Image]] = []
    for row in _choose_rows(dataset, seed=seed):
        if len(rows) == num_images:
            break
        try:
            plain = load_view(dataset.source, row, EvalTransform(spec), None).pixels
            views = [_render(dataset, Draw(row, epoch, 0)) for epoch in range(num_draws)]
        except DataError:
            continue
        rows.append([shrink(pixels, _TILE_PX) for pixels in (plain, *views)])
    return _arrange(rows) if rows else None


def _choose_rows(dataset: ImageDataset, *, seed: int) -> list[int]:
    """Return all rows in a random order that begins with an image of each class."""
    order: NDArray[np.int64] = np.random.default_rng(seed).permutation(len(dataset))
    if dataset.labels.ndim > 1:
        return [int(row) for row in order]
    labels = dataset.labels.numpy()[order]
    first = np.unique(labels, return_index=True)[1]
    rest = np.setdiff1d(np.arange(len(order)), first)
    return [int(row) for row in (*order[np.sort(first)], *order[rest])]


def _render(dataset: ImageDataset, draw: Draw) -> Pixels:
    """Return the pixels of a draw (H, W, C), uint8, with its change of color."""
    batch = dataset.__getitems__([draw])
    channels = batch["image"].shape[-1]
    values = normalise(
        batch["image"],
        mean=[0.0] * channels,
        std=[1.0] * channels,
        color_matrix=batch.get("color_matrix"),
    )
    pixels = values[0].permute(1, 2, 0).mul(255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.numpy())


def _arrange(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    step = _TILE_PX + _GAP_PX
    width = len(rows[0]) * step - _GAP_PX + _WIDE_GAP_PX
    sheet = Image.new("RGBA", (width, len(rows) * step - _GAP_PX))
    for number, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            left = column * step + (_WIDE_GAP_PX if column else 0)
            sheet.paste(tile, (left, number * step))
    return sheet
