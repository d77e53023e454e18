"""Crops and antialiased resizing of pixels of 8 or 16 bits."""

import math
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
"""Pixels of an image, uint8, or uint16 with ``data.bit_depth=16``; shape (H, W, C)."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the full image; right and bottom are exclusive."""
Interpolation = Literal["bilinear", "bicubic"]

_ANTIALIAS_THRESHOLD = 1.1
"""Reduction factor up to which two-tap interpolation is within 42 dB PSNR of an antialiased one,
and cheaper."""


def resize(pixels: Pixels, size: tuple[int, int], mode: Interpolation = "bilinear") -> Pixels:
    """Return pixels of shape (*size, C), antialiased if the image shrinks.

    Args:
        pixels: Pixels, uint8 or uint16, shape (H, W, C); need not be contiguous.
        size: Height and width.
        mode: Interpolation kernel.
    """
    if pixels.shape[:2] == size:
        return pixels.copy()
    reduction = max(pixels.shape[0] / size[0], pixels.shape[1] / size[1])
    is_rgb = pixels.shape[2] == 3 and pixels.dtype == np.uint8
    if is_rgb and mode == "bilinear" and reduction <= _ANTIALIAS_THRESHOLD:
        return np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
    import torch  # takes seconds, and an audit needs none of it
    from torch.nn import functional

    # permuting a batch of one keeps the strides of channels last; with any other construction torch
    # may treat it as channels first, which costs more than the resize itself
    writeable = np.require(pixels, requirements=["C", "W"])  # torch warns of read-only arrays
    image = torch.from_numpy(writeable)[None].permute(0, 3, 1, 2)
    if pixels.dtype != np.uint8:
        wide = functional.interpolate(image.float(), size=size, mode=mode, antialias=True)
        values = wide.round_().clamp_(0, 65_535).permute(0, 2, 3, 1)[0].numpy()
        return values.astype(np.uint16)
    small = functional.interpolate(image, size=size, mode=mode, antialias=True)
    resized: Pixels = small.permute(0, 2, 3, 1)[0].numpy()
    return resized


def crop_scaled(pixels: Pixels, box: Box, scale: tuple[float, float]) -> Pixels:
    """Return the pixels of a box, as a view.

    Args:
        pixels: Stored pixels, shape (H, W, C).
        box: Box in pixels of the full image.
        scale: Height and width of the stored pixels relative to the full image.
    """
    rows, columns, _ = pixels.shape
    top, bottom = _snap_to_grid(box[1], box[3], scale[0], rows)
    left, right = _snap_to_grid(box[0], box[2], scale[1], columns)
    return pixels[top:bottom, left:right]


def _snap_to_grid(first: int, last: int, scale: float, limit: int) -> tuple[int, int]:
    """Return two opposite edges in stored pixels, at least one pixel apart.

    Both round halves up; rounding to even could remove a pixel from the box.
    """
    start, end = (math.floor(edge * scale + 0.5) for edge in (first, last))
    start = min(start, limit - 1)
    return start, max(start + 1, min(end, limit))
