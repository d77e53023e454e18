"""Thumbnails of image files as data URIs."""

import base64
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.commands.report.photos.time_budget import TimeBudget
from finetune.data.images.decode import open_image
from finetune.data.images.multichannel import MultichannelImage
from finetune.errors import DataError
from finetune.types import ReadOptions

SIDE_PX = 144
"""Longer side of a thumbnail."""

_QUALITY = 72
NOT_FOUND = "file not found"
NO_TIME = "not drawn: out of time"


def draw_thumbnails(
    paths: Iterable[str], *, root: Path, options: ReadOptions, budget: TimeBudget
) -> tuple[dict[str, str], dict[str, str]]:
    """Return data URIs of thumbnails, and the reasons of images without one, by path.

    Args:
        paths: Paths in the manifest, the most important first; repeated ones are drawn once.
        root: Folder that they are relative to.
        options: How the images are read.
        budget: Time; images after its end are left out.
    """
    drawn: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        if budget.is_spent:
            reasons[path] = NO_TIME
            continue
        try:
            drawn[path] = encode_webp(read_thumbnail(root / path, options=options))
        except DataError as error:
            reasons[path] = str(error) if (root / path).exists() else NOT_FOUND
    return drawn, reasons


def read_thumbnail(path: Path, *, options: ReadOptions, side: int = SIDE_PX) -> Image.Image:
    """Return an image file in RGB, shrunk to a longer side; a small one is enlarged exactly.

    Raises:
        DataError: The file cannot be read.
    """
    image = open_image(path, options=options)
    longest = max(image.height, image.width)
    scale = min(1.0, side / longest)
    size = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
    if isinstance(image, MultichannelImage):
        picture = image.to_pil().resize((size[1], size[0]))
    else:
        picture = Image.fromarray(image.crop((0, 0, image.width, image.height), size))
    factor = side // max(picture.size)
    if factor > 1:  # the pixels of a small image stay sharp
        picture = Image.fromarray(np.asarray(picture).repeat(factor, 0).repeat(factor, 1))
    return picture


def encode_webp(image: Image.Image, *, quality: int = _QUALITY) -> str:
    """Return a picture as a data URI of WebP."""
    return _encode(image, "webp", quality=quality)


def encode_png(image: Image.Image) -> str:
    """Return a picture as a data URI of PNG, for few pixels or colors."""
    return _encode(image, "png", optimize=True)


def _encode(image: Image.Image, name: str, **options: int | bool) -> str:
    buffer = BytesIO()
    image.save(buffer, name, **options)
    return f"data:image/{name};base64,{base64.b64encode(buffer.getvalue()).decode()}"
