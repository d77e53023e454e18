"""Stronger augmentation of rare classes."""

import numpy as np
from numpy.typing import NDArray

from finetune.data.images.lazy_image import LazyImage
from finetune.data.transforms.eval_transform import Transform, View
from finetune.types import Draw


class RareClassTransform:
    """Training transform that applies another transform to images of rare classes.

    Views are a pure function of (seed, draw), as those of the two transforms are.

    Args:
        default: Transform of the other images, with the same sizes in the same epochs as ``rare``.
        rare: Transform of images of rare classes.
        is_rare: Whether each training image is of a rare class, bool, shape (N,).
    """

    is_random = True

    def __init__(self, default: Transform, rare: Transform, *, is_rare: NDArray[np.bool_]) -> None:
        self.default = default
        self.rare = rare
        self.is_rare = is_rare
        self.size = default.size
        self.has_color_matrix = default.has_color_matrix or rare.has_color_matrix
        self.has_flip = default.has_flip or rare.has_flip
        sides = [transform.min_side_px for transform in (default, rare)]
        self.min_side_px = None if None in sides else max(side for side in sides if side)

    def get_size(self, epoch: int) -> tuple[int, int]:
        """Return height and width of the pixels in an epoch."""
        return self.default.get_size(epoch)

    def __call__(self, lazy_image: LazyImage, draw: Draw | None) -> View:
        """Return the view of a draw."""
        assert draw is not None, "training images need a draw of the sampler"
        transform = self.rare if self.is_rare[draw.row] else self.default
        view = transform(lazy_image, draw)
        if self.has_color_matrix and view.color_matrix is None:
            num_channels = view.pixels.shape[2]
            return View(view.pixels, np.eye(num_channels, num_channels + 1, dtype=np.float32))
        return view
