"""Pillow's resampling kernels as tensor functions.

A kernel is a function of the distance between an input and an output pixel, in pixels of the
smaller of both images (https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Kernel = Callable[[Tensor], Tensor]

_CUBIC_COEFFICIENT = -0.5
"""Pillow's, as in Keys 1981; that of OpenCV and of torch without antialias is -0.75."""


def compute_box(distance: Tensor) -> Tensor:
    """Return the weights of the box kernel, of the same shape as the distances."""
    return ((distance > -0.5) & (distance <= 0.5)).to(distance.dtype)


def compute_bilinear(distance: Tensor) -> Tensor:
    """Return the weights of the triangle kernel, of the same shape as the distances."""
    return (1 - distance.abs()).clamp(min=0)


def compute_hamming(distance: Tensor) -> Tensor:
    """Return the weights of the Hamming kernel, of the same shape as the distances."""
    x = distance.abs()
    window = 0.54 + 0.46 * torch.cos(math.pi * x)
    return torch.where(x < 1, _compute_sinc(x) * window, 0.0)


def compute_bicubic(distance: Tensor) -> Tensor:
    """Return the weights of the cubic kernel, of the same shape as the distances."""
    a, x = _CUBIC_COEFFICIENT, distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def compute_lanczos(distance: Tensor) -> Tensor:
    """Return the weights of the Lanczos kernel of three lobes, of the shape of the distances."""
    x = distance.abs()
    return torch.where(x < 3, _compute_sinc(x) * _compute_sinc(x / 3), 0.0)


def _compute_sinc(x: Tensor) -> Tensor:
    """Return sin(pi x) / (pi x), and 1 at 0."""
    is_zero = x == 0
    angle = torch.where(is_zero, 1.0, x) * math.pi
    return torch.where(is_zero, 1.0, torch.sin(angle) / angle)


KERNELS: Mapping[str, Kernel] = {
    "box": compute_box,
    "bilinear": compute_bilinear,
    "hamming": compute_hamming,
    "bicubic": compute_bicubic,
    "lanczos": compute_lanczos,
}
"""Kernels by timm's name of the interpolation; "nearest" takes one pixel and has none."""
