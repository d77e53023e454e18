"""Sheet of many small thumbnails in one picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from finetune.commands.report.photos.thumbnails import encode_webp
from finetune.data.images.multichannel import build_stored_image
from finetune.data.images.resample import Pixels

_SIDES_PX = ((400, 72), (1200, 56), (2500, 40))
"""Side of a thumbnail for up to so many images."""

_SMALLEST_PX = 30
MAX_LETTERS = 1_400_000
"""Length of the data URI above which the quality is lowered."""

_QUALITIES = (55, 30, 10)


@dataclass(frozen=True, slots=True)
class SpriteSheet:
    """Thumbnails row by row.

    Attributes:
        uri: Data URI.
        side_px: Side of a thumbnail.
        num_columns: Thumbnails in a row.
    """

    uri: str
    side_px: int
    num_columns: int


def choose_side(num_images: int) -> int:
    """Return the side of a thumbnail in pixels."""
    return next((side for limit, side in _SIDES_PX if num_images <= limit), _SMALLEST_PX)


def shrink(pixels: Pixels, side_px: int) -> Image.Image:
    """Return pixels (H, W, C) of any channels and bits as a square picture in RGB."""
    height, width = pixels.shape[:2]
    picture = build_stored_image(pixels, height=height, width=width).to_pil()
    return picture.resize((side_px, side_px), Image.Resampling.BOX)


def draw_sprite_sheet(pictures: Sequence[Image.Image]) -> SpriteSheet:
    """Return a sheet of pictures of any size, one at least."""
    side, columns = choose_side(len(pictures)), math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.fromarray(np.zeros((rows * side, columns * side, 3), np.uint8))
    for number, picture in enumerate(pictures):
        small = picture if picture.width == side else picture.resize((side, side))
        sheet.paste(small, (number % columns * side, number // columns * side))
    uri = ""
    for quality in _QUALITIES:
        uri = encode_webp(sheet, quality=quality)
        if len(uri) <= MAX_LETTERS:
            break
    return SpriteSheet(uri, side, columns)
