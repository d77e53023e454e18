"""Small grey images as text."""

from pathlib import Path

import numpy as np
from PIL import Image

_SHADES = " ░▒▓█"


def draw_digits(files: list[Path], *, size: int = 8) -> list[str]:
    """Return lines of text that show grey images side by side, two characters a pixel.

    Args:
        files: Image files.
        size: Side of each image in pixels, and in lines.
    """
    blocks = []
    for file in files:
        with Image.open(file) as image:
            grey = image.convert("L").resize((size, size), Image.Resampling.BOX)
        values = np.asarray(grey, dtype=np.int64) * len(_SHADES) // 256
        blocks.append(["".join(2 * _SHADES[value] for value in row) for row in values])
    return ["".join(parts) for parts in zip(*blocks, strict=True)]
