"""Small deterministic images on disk, for the tests of every floor."""

from pathlib import Path

import numpy as np
from PIL import Image


def noise(*, seed: int = 0, width: int = 12, height: int = 10) -> Image.Image:
    """Return an RGB image whose pixels depend on the seed alone."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(*, width: int, height: int) -> Image.Image:
    """Return an RGB image of slow gradients, as photos are."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 17) * np.cos(y / 23), np.sin((x + y) / 31), np.cos(x / 41 - y / 13)]
    return Image.fromarray((np.stack(waves, -1) * 120 + 128).astype(np.uint8))


def write_images(root: Path, *names: str) -> Path:
    """Write one image a name below ``root``, each with pixels of its own; return ``root``."""
    for seed, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        noise(seed=seed).save(file)
    return root
