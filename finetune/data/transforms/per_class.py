"""Rare classes seen in more varied views than the others."""

import numpy as np
from numpy.typing import NDArray

from finetune.data.images.lazy_image import Picture
from finetune.data.transforms.eval_transform import Transform, View
from finetune.types import Draw

_UNCHANGED = np.eye(3, 4, dtype=np.float32)


class RareTransform:
    """One transform for the images of rare classes, another for the rest.

    What it makes of a draw is what the one in charge makes of it, a pure function of (seed, draw).

    Args:
        usual: Of the other images; it gives the same sizes in the same epochs as ``rare``.
        rare: Of images of rare classes.
        is_rare: Whether each training image is of one, shape (N,).
    """

    draws = True

    def __init__(self, usual: Transform, rare: Transform, *, is_rare: NDArray[np.bool_]) -> None:
        self.usual = usual
        self.rare = rare
        self.is_rare = is_rare
        self.size = usual.size
        self.colours = usual.colours or rare.colours
        self.flips = usual.flips or rare.flips
        sides = [transform.needed_px for transform in (usual, rare)]
        self.needed_px = None if None in sides else max(side for side in sides if side)

    def size_at(self, epoch: int) -> tuple[int, int]:
        """Return height and width of what it returns in an epoch."""
        return self.usual.size_at(epoch)

    def __call__(self, picture: Picture, draw: Draw | None) -> View:
        """Return the view of a draw."""
        assert draw is not None, "training images are drawn by the sampler"
        transform = self.rare if self.is_rare[draw.row] else self.usual
        view = transform(picture, draw)
        if self.colours and view.colour is None:
            return View(view.pixels, _UNCHANGED)
        return view
