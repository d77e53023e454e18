"""Picture of the filters of a network's first convolution."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from finetune.commands.report.photos.thumbnails import encode_png
from finetune.report.photos.network_pictures import FilterSheet

MAX_FILTERS = 64
MIN_SIDE = 3
"""Side from which a filter has a structure to look at."""

_MIN_RELATIVE = 0.05
"""Largest weight of a filter, relative to that of all, from which it is scaled by itself."""

_NUM_COLUMNS = 16
_GAP = 1


def draw_filters(network: nn.Module, num_channels: int) -> FilterSheet | str:
    """Return the filters of the first convolution, or a sentence where there are none to show.

    Filters of three channels are colors: grey is zero. Of other channels it is their mean.

    Args:
        network: Network of images with ``num_channels`` channels.
        num_channels: Channels of an image.
    """
    found = find_first_convolution(network, num_channels)
    if found is None:
        return "The first layer of the network is no convolution of the image: it has no filters."
    name, layer = found
    weight = layer.weight.detach().float().cpu().numpy()
    count, channels, height, width = weight.shape
    if min(height, width) < MIN_SIDE:
        return f"Filters of {name} have {height} x {width} weights, too few for a picture."
    norms = np.sqrt((weight**2).sum(axis=(1, 2, 3)))
    shown = weight[np.argsort(-norms, kind="stable")[:MAX_FILTERS]]
    is_color = channels == 3
    tiles = shown.transpose(0, 2, 3, 1) if is_color else shown.mean(axis=1)[..., None]
    sheet = _arrange(_scale(tiles))
    return FilterSheet(
        name, encode_png(Image.fromarray(sheet)), sheet.shape[1], len(shown), count,
        (height, width), is_color, channels,
    )  # fmt: skip


def find_first_convolution(network: nn.Module, num_channels: int) -> tuple[str, nn.Conv2d] | None:
    """Return name and layer of the first convolution that sees all channels of an image."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            is_first = module.in_channels == num_channels and module.groups == 1
            return (name, module) if is_first else None
    return None


def _scale(tiles: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return each tile (N, H, W, C) in [0, 255], with zero in the middle."""
    largest = np.abs(tiles).max(axis=(1, 2, 3), keepdims=True)
    # filters that are almost zero stay grey
    scale = np.maximum(largest, max(_MIN_RELATIVE * float(largest.max()), 1e-12))
    scaled = tiles / scale * 127.5 + 127.5
    pixels: NDArray[np.uint8] = (
        np.rint(np.nan_to_num(scaled, nan=127.5)).clip(0, 255).astype(np.uint8)
    )
    return pixels


def _arrange(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return tiles (N, H, W, C) on a sheet with transparent gaps, shape (rows, columns, 4)."""
    count, height, width, _ = tiles.shape
    columns = min(_NUM_COLUMNS, count)
    rows = math.ceil(count / columns)
    size = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 4)
    sheet = np.zeros(size, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        sheet[top : top + height, left : left + width, :3] = tile
        sheet[top : top + height, left : left + width, 3] = 255
    return sheet
