"""Color jitter as one matrix per image: drawn by a worker, applied to the batch on the device."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ColorMatrix = NDArray[np.float32]
"""Color matrix, shape (3, 4): output by input channel, and an offset; for RGB in [0, 1]."""

_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])
_RGB_TO_YIQ = np.array([_LUMA_WEIGHTS, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
_IDENTITY = np.eye(3)


@dataclass(frozen=True, slots=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, as torchvision's ColorJitter defines them.

    All four are affine in RGB, so that their composition is one matrix: the hue is rotated in the
    IQ plane of YIQ (where gray stays gray) and not in HSV, and values are clipped once, at the end.

    Attributes:
        brightness: Range of the brightness factor, [1 - brightness, 1 + brightness].
        contrast: Range of the contrast factor likewise, about the image's mean gray.
        saturation: Range of the saturation factor likewise, about each pixel's gray.
        hue: Largest rotation as a fraction of a full turn, in [0, 0.5].
        p: Probability of these four changes.
        grayscale_p: Probability of a conversion to grayscale, independent of ``p``.
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
        """Return a random color matrix for an image, float32, shape (3, 4).

        Args:
            pixels: Image, uint8, shape (H, W, 3); contrast changes are about its mean gray.
            generator: Random generator, from which 6 numbers are drawn in every case.
        """
        draw = generator.random(6)
        matrix, offset = _IDENTITY, 0.0
        if draw[0] < self.p:
            bright, contrast, saturation = (
                1 + extent * (2 * value - 1)
                for extent, value in zip(
                    (self.brightness, self.contrast, self.saturation), draw[1:4], strict=True
                )
            )
            mean_gray = float(_LUMA_WEIGHTS @ np.array(cv2.mean(pixels)[:3])) / 255
            # hue and saturation do not change gray, nor the offset that contrast needs
            offset = (1 - contrast) * bright * mean_gray
            rotated = _build_hue_matrix(self.hue * (2 * draw[4] - 1)) @ _build_saturation_matrix(
                saturation
            )
            matrix = bright * contrast * rotated
        if draw[5] < self.grayscale_p:
            matrix = _build_saturation_matrix(0.0) @ matrix
        return np.column_stack([matrix, np.full(3, offset)]).astype(np.float32)


def _build_saturation_matrix(factor: float) -> NDArray[np.float64]:
    """Return the matrix that blends an image with its grayscale version."""
    return factor * _IDENTITY + (1 - factor) * np.broadcast_to(_LUMA_WEIGHTS, (3, 3))


def _build_hue_matrix(fraction: float) -> NDArray[np.float64]:
    """Return the matrix that rotates the hue by a fraction of a full turn."""
    angle = 2 * math.pi * fraction
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    matrix: NDArray[np.float64] = _YIQ_TO_RGB @ rotation @ _RGB_TO_YIQ
    return matrix
