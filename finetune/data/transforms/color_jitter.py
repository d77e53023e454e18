"""Colour jitter as one matrix an image: drawn with it, applied to the batch on the device."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ColorMatrix = NDArray[np.float32]
"""Shape (3, 4): output channel by input channel, and a shift, for RGB in [0, 1]."""

_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])
_RGB_TO_YIQ = np.array([_LUMA_WEIGHTS, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
_IDENTITY = np.eye(3)


@dataclass(frozen=True, slots=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, as torchvision's ColorJitter means them.

    All four are affine in RGB, so that together they are one matrix: the hue turns in the plane of
    YIQ (where grey stays grey) and not in HSV, and values are clipped once, at the end.

    Attributes:
        brightness: Factor in [1 - brightness, 1 + brightness].
        contrast: The same, about the image's mean grey.
        saturation: The same, about each pixel's grey.
        hue: Largest turn, as a share of the circle, in [0, 0.5].
        p: Chance to change anything.
        grayscale_p: Chance to lose all colour, apart from that.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float
    grayscale_p: float = 0.0

    def sample_matrix(
        self, pixels: NDArray[np.uint8], generator: np.random.Generator
    ) -> ColorMatrix:
        """Return what happens to an image's colours, shape (3, 4), float32.

        Args:
            pixels: The image, uint8, shape (H, W, 3); its mean grey is the centre of contrast.
            generator: Draws the same count of numbers, whatever comes of them.
        """
        draw = generator.random(6)
        change, shift = _IDENTITY, 0.0
        if draw[0] < self.p:
            bright, contrast, saturation = (
                1 + reach * (2 * value - 1)
                for reach, value in zip(
                    (self.brightness, self.contrast, self.saturation), draw[1:4], strict=True
                )
            )
            mean_grey = float(_LUMA_WEIGHTS @ np.array(cv2.mean(pixels)[:3])) / 255
            # turning and saturating leave grey alone, and with it the shift that contrast needs
            shift = (1 - contrast) * bright * mean_grey
            turned = _build_hue_matrix(self.hue * (2 * draw[4] - 1)) @ _build_saturation_matrix(
                saturation
            )
            change = bright * contrast * turned
        if draw[5] < self.grayscale_p:
            change = _build_saturation_matrix(0.0) @ change
        return np.column_stack([change, np.full(3, shift)]).astype(np.float32)


def _build_saturation_matrix(factor: float) -> NDArray[np.float64]:
    """Return the mixture of the image and its grey."""
    return factor * _IDENTITY + (1 - factor) * np.broadcast_to(_LUMA_WEIGHTS, (3, 3))


def _build_hue_matrix(fraction: float) -> NDArray[np.float64]:
    angle = 2 * math.pi * fraction
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    matrix: NDArray[np.float64] = _YIQ_TO_RGB @ turn @ _RGB_TO_YIQ
    return matrix
