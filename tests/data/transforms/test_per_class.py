"""Images of rare classes are seen as their own transform sees them, the rest as before."""

from typing import Any

import numpy as np
import pytest

from finetune.data.images.lazy_image import ArrayPicture
from finetune.data.transforms.eval_transform import Transform
from finetune.data.transforms.per_class import RareTransform
from finetune.data.transforms.presets import train_transform
from finetune.types import Draw, PreprocessSpec

SPEC = PreprocessSpec((3, 16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def preset(name: str, **more: Any) -> Transform:
    return train_transform(name, spec=SPEC, seed=3, **more)


@pytest.fixture
def picture() -> ArrayPicture:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    return ArrayPicture(pixels, height=40, width=50)


@pytest.mark.parametrize("sizes", [(), (8, 16)])
def test_each_image_is_seen_as_by_the_transform_of_its_class(
    sizes: tuple[int, ...], picture: ArrayPicture
) -> None:
    usual, rare = preset("light", sizes=sizes), preset("strong", sizes=sizes)
    both = RareTransform(usual, rare, is_rare=np.array([False, True]))
    for epoch in (0, 1, 0):
        for row, alone in enumerate((usual, rare)):
            draw = Draw(row, epoch, 2)
            found, expected = both(picture, draw), alone(picture, draw)
            assert np.array_equal(found.pixels, expected.pixels)
            assert found.pixels.shape[:2] == both.size_at(epoch) == alone.size_at(epoch)
            colour = np.eye(3, 4) if expected.colour is None else expected.colour
            assert found.colour is not None
            np.testing.assert_array_equal(found.colour, colour)


def test_stored_pixels_serve_both() -> None:
    usual, rare = preset("medium"), preset("strong")
    both = RareTransform(usual, rare, is_rare=np.array([True]))
    assert usual.needed_px is not None
    assert both.needed_px == rare.needed_px
    assert rare.needed_px is not None
    assert rare.needed_px > usual.needed_px
    assert (both.draws, both.flips, both.colours) == (True, True, True)
