"""Preprocessing of photos as a graph: timm's resize and crop, with the pixels that Pillow gives.

Resizing, padding and the crop of a side are one matrix (output pixels, input pixels) of fixed
height, which the graph computes from the size of the photo. It needs no resize operator, whose
antialias, cubic coefficient and rounding differ among runtimes.

Shapes: B photos, C channels, H and W height and width of a photo, h and w those of the output.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune.exporters.graphs.resampling_kernels import KERNELS
from finetune.types import PreprocessSpec

INTERPOLATIONS = ("nearest", *KERNELS)
"""Interpolations that a graph can hold."""

_WEIGHT_STEPS = 2**22
"""Steps of 1 in which Pillow stores weights. Where a side shrinks by a ratio such as 12 to 11, many
sums are halves, which the last digits of the weights round up or down."""

_SUM_ERROR = 1e-5
"""Error of a sum in float32: on the validation images of hymenoptera 0.005% of the values differ
from those of Pillow with it, and 0.013% without it."""


class _Sides(NamedTuple):
    """Size of a photo, or of the resized photo, as integer tensors of shape ()."""

    height: Tensor
    width: Tensor


class PhotoPreprocessing(nn.Module):
    """Module from photos, uint8, (B, H, W, C), to pixels in [0, 255], float32, (B, C, h, w).

    All photos of a batch have the same size, which may differ between batches. The pixels are
    integers, as those of an image that Pillow has resized.

    Args:
        spec: Preprocessing of the model.

    Raises:
        ValueError: The interpolation or the crop mode is unknown.
    """

    fill: Tensor

    def __init__(self, spec: PreprocessSpec) -> None:
        super().__init__()
        if spec.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {spec.interpolation!r} is none of {INTERPOLATIONS}")
        if spec.crop_mode not in ("center", "squash", "border"):
            raise ValueError(f"unknown crop mode {spec.crop_mode!r}")
        self.kernel = KERNELS.get(spec.interpolation)
        self.crop_mode = spec.crop_mode
        self.crop = spec.input_size[1:]
        self.scaled = tuple(math.floor(side / spec.crop_pct) for side in self.crop)
        is_filled = spec.crop_mode == "border"
        fill = [round(255 * value) if is_filled else 0 for value in spec.mean]
        self.register_buffer("fill", torch.tensor(fill).float()[None, :, None, None])

    def forward(self, photos: Tensor) -> Tensor:
        """Return the resized and cropped pixels."""
        pixels = photos.permute(0, 3, 1, 2).float()
        columns, rows = torch.arange(photos.shape[2]), torch.arange(photos.shape[1])
        source = _Sides(rows[-1] + 1, columns[-1] + 1)
        resized = self._compute_size(source)
        across, is_column = self._build_matrix(columns, source.width, resized.width, self.crop[1])
        down, is_row = self._build_matrix(rows, source.height, resized.height, self.crop[0])
        # columns before rows, and rounded in between, as Pillow before 13; newer ones begin with
        # the rows of some sizes, which changes the pixels by what is rounded
        wide = _round_to_levels(pixels @ across.T)
        resized_pixels = _round_to_levels(down @ wide)
        return torch.where(is_row[:, None] & is_column, resized_pixels, self.fill)

    def _compute_size(self, source: _Sides) -> _Sides:
        """Return the size to which timm resizes a photo, at least 1 pixel."""
        height, width = self.scaled
        if self.crop_mode == "squash":
            return _Sides(*(torch.full_like(source.height, side) for side in self.scaled))
        if self.crop_mode == "center" and height == width:  # torchvision's Resize of one side
            short = torch.minimum(source.height, source.width)
            # whole numbers below 2**53: the same as the truncated quotient of floats
            return _Sides(*((side * height) // short for side in source))
        ratios = source.height.double() / height, source.width.double() / width
        ratio = (torch.maximum if self.crop_mode == "border" else torch.minimum)(*ratios)
        sides = (torch.round(side.double() / ratio).long().clamp(min=1) for side in source)
        return _Sides(*sides)

    def _build_matrix(
        self, positions: Tensor, length: Tensor, resized: Tensor, crop: int
    ) -> tuple[Tensor, Tensor]:
        """Return the weights of the pixels of a side, and which output pixels lie in the photo.

        Args:
            positions: Indices of the input pixels, shape (L,).
            length: Their number L.
            resized: Number of pixels of the whole resized side.
            crop: Number of pixels of the output.

        Returns:
            Weights, float32, shape (crop, L), and whether an output pixel is one of the resized
            side, shape (crop,).
        """
        rest = resized - crop
        # the offset of a centre crop is rounded half to even; a missing part is padded before
        start = torch.where(rest >= 0, torch.round(rest / 2).long(), -((-rest) // 2))
        outputs = torch.arange(crop) + start
        is_inside = (outputs >= 0) & (outputs < resized)
        if self.kernel is None:
            nearest = ((2 * outputs + 1) * length) // (2 * resized)
            weights = (positions[None] == nearest[:, None]).float()
            return weights, is_inside
        # twice the distance of the centres in units of 1 / resized: exact in whole numbers
        distance = (2 * positions[None] + 1) * resized - (2 * outputs[:, None] + 1) * length
        unit = 2 * torch.maximum(length, resized)
        weights = self.kernel(distance.float() / unit.float())
        total = weights.sum(dim=1, keepdim=True)
        weights = weights / torch.where(total == 0, 1.0, total)
        return torch.floor(weights * _WEIGHT_STEPS + 0.5) / _WEIGHT_STEPS, is_inside


def _round_to_levels(values: Tensor) -> Tensor:
    """Return values as levels of 8 bits, rounded half up, although they were summed in float32."""
    return torch.floor(values + (0.5 + _SUM_ERROR)).clamp(0, 255)
