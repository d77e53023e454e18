"""Color jitter as one matrix per image: drawn by a worker, applied to the batch on the device."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ColorMatrix = NDArray[np.float32]
"""Color matrix, shape (3, 4): output by input channel, and an offset; for RGB in [0, 1].

For grey images (1, 2)."""

_LUMA_WEIGHTS = (0.299, 0.587, 0.114)
_RGB_TO_YIQ = np.array([_LUMA_WEIGHTS, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
_IDENTITY = np.eye(3, 4, dtype=np.float32)
_MATRIX_BASIS = np.stack(
    [
        (_YIQ_TO_RGB @ plane @ _RGB_TO_YIQ).ravel()
        for plane in (
            np.diag([1.0, 0.0, 0.0]),  # gray
            np.diag([0.0, 1.0, 1.0]),  # chroma, and below the same turned by 90 degrees
            np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),
        )
    ]
)
"""Parts of a color matrix, shape (3, 9): each is 3 x 3, output by input channel."""


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
        """Return a random color matrix for an image, float32, shape (C, C + 1).

        Grey images have no hue and no saturation; brightness and contrast are those of RGB.

        Args:
            pixels: Image, uint8 or uint16, shape (H, W, C) with C of 3 or 1; contrast changes are
                about its mean gray.
            generator: Random generator, from which 6 numbers are drawn in every case.
        """
        draw = generator.random(6).tolist()
        is_jittered, is_grayscale = draw[0] < self.p, draw[5] < self.grayscale_p
        if not (is_jittered or is_grayscale):
            return (_IDENTITY if pixels.shape[2] == 3 else np.eye(1, 2, dtype=np.float32)).copy()
        gray, cosine, sine, offset = 1.0, 1.0, 0.0, 0.0
        if is_jittered:
            bright, contrast, saturation = (
                1 + extent * (2 * value - 1)
                for extent, value in zip(
                    (self.brightness, self.contrast, self.saturation), draw[1:4], strict=True
                )
            )
            mean = cv2.mean(pixels)
            white = 255 if pixels.dtype == np.uint8 else 65_535
            weights = _LUMA_WEIGHTS if pixels.shape[2] == 3 else (1.0,)
            mean_gray = sum(weight * mean[i] for i, weight in enumerate(weights)) / white
            # hue and saturation do not change gray, nor the offset that contrast needs
            offset = (1 - contrast) * bright * mean_gray
            angle = 2 * math.pi * self.hue * (2 * draw[4] - 1)
            gray = bright * contrast
            cosine = gray * saturation * math.cos(angle)
            sine = gray * saturation * math.sin(angle)
        if is_grayscale:
            cosine = sine = 0.0
        if pixels.shape[2] == 1:
            return np.array([[gray, offset]], np.float32)
        matrix = np.empty((3, 4), np.float32)
        matrix[:, :3] = (np.array([gray, cosine, sine]) @ _MATRIX_BASIS).reshape(3, 3)
        matrix[:, 3] = offset
        return matrix
