"""Makes JPEG photos with the spectrum and the byte density of real ones; nothing is downloaded.

Light and colour are noise of equal energy per octave, as in photos (power 1/f^2), with the edges of
shapes across it. Fine detail lies in patches: parts of every photo are smooth, others busy. Its
strength is what brings the files to the wanted bytes per pixel, at one JPEG quality.
"""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]

QUALITY = 90
CLASSES = ("heath", "shore")
BLOCK_PX = 16
GRAINS = 64  # to the width: finer waves belong to the detail
COLOURS = np.float32([[1, 1, 1], [0.3, 0, -0.3], [-0.15, 0.3, -0.15]])  # light, then two of colour
MEGAPIXEL = 10**6


def photo_bytes_per_px(width: int, height: int) -> float:
    """Return the density of photos of one size: ImageNet's up to a megapixel, then a camera's."""
    pixels = width * height
    if pixels > 4 * MEGAPIXEL:
        return 0.25
    return 0.29 if pixels > MEGAPIXEL / 2 else 0.315


def make_photos(
    folder: Path, size: tuple[int, int], *, count: int, bytes_per_px: float, seed: int = 0
) -> list[Path]:
    """Write photos into one folder per class, and return their paths.

    Args:
        folder: Where the folders of the classes go.
        size: Width and height in px.
        count: Number of photos.
        bytes_per_px: Mean size of the files over the number of pixels.
        seed: Every photo is a function of it and of its index.
    """
    strength = _strength(size, bytes_per_px, seed)
    files = [folder / CLASSES[i % len(CLASSES)] / f"{i:04}.jpg" for i in range(count)]
    for index, file in enumerate(files):
        rng = np.random.default_rng((seed, index))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_jpeg(_pixels(_scene(size, rng), _detail(size, rng), strength)))
    return files


def mean_bytes(files: list[Path]) -> float:
    """Return the mean size of some files."""
    return sum(file.stat().st_size for file in files) / len(files)


def _strength(size: tuple[int, int], bytes_per_px: float, seed: int) -> float:
    """Return the strength of detail at which a photo of its own has the wanted bytes."""
    rng = np.random.default_rng((seed, 2**31))
    scene, detail = _bands(_scene(size, rng)), _bands(_detail(size, rng))
    low, high = 0.0, 100.0
    for _ in range(12):
        middle = (low + high) / 2
        too_small = len(_jpeg(_pixels(scene, detail, middle))) < bytes_per_px * detail.size
        low, high = (middle, high) if too_small else (low, middle)
    return low


def _bands(field: NDArray[Any]) -> NDArray[Any]:
    """Return a megapixel or so of bands across a field, each as high as a JPEG's block."""
    height, width = field.shape[:2]
    step = 1 + height * width // MEGAPIXEL
    bands = field[: height - height % BLOCK_PX].reshape(-1, BLOCK_PX, *field.shape[1:])[::step]
    return bands.reshape(-1, *field.shape[1:])


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return a baseline JPEG with its colour at half the size, as cameras write them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def _pixels(scene: NDArray[np.uint8], detail: Field, strength: float) -> NDArray[np.uint8]:
    """Return scene and detail together, uint8, shape (H, W, 3)."""
    return np.clip(scene + strength * detail[..., None], 0, 255).astype(np.uint8)


def _scene(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return soft light and colour with the edges of shapes, uint8, shape (H, W, 3)."""
    width, height = (-(-side // 2 ** _detail_octaves(size)) for side in size)
    small = _noise((width, height), 3, rng) @ COLOURS
    soft = np.clip(128 + 45 * small / small.std(), 0, 255).astype(np.uint8)
    soft = cv2.resize(soft, size, interpolation=cv2.INTER_CUBIC)
    shapes = soft.copy()
    for _ in range(24):
        corners = rng.uniform(-0.25, 0.25, (5, 2)) * rng.uniform(0.1, 1) + rng.uniform(0, 1, 2)
        points = np.int32(corners * size)
        colour = rng.uniform(0, 255, 3).tolist()
        cv2.fillPoly(shapes, [cv2.convexHull(points)], colour, lineType=cv2.LINE_AA)
    return cv2.addWeighted(soft, 0.6, shapes, 0.4, 0)


def _detail(size: tuple[int, int], rng: np.random.Generator) -> Field:
    """Return noise of waves finer than the scene's, in soft patches, shape (H, W)."""
    width, height = size
    patches = _noise((width // 16, height // 16), 1, rng)
    patches = np.square(patches / patches.std()).clip(0, 4)
    fine = _noise(size, 1, rng, octaves=_detail_octaves(size))
    return fine * cv2.resize(patches, size, interpolation=cv2.INTER_LINEAR)


def _detail_octaves(size: tuple[int, int]) -> int:
    """Return the number of octaves below the scene's: the same scene, in more pixels, has more."""
    return max(1, round(np.log2(size[0] / GRAINS)))


def _noise(
    size: tuple[int, int], channels: int, rng: np.random.Generator, *, octaves: int | None = None
) -> Field:
    """Return noise of equal energy in each octave, shape (H, W) or (H, W, channels).

    Args:
        size: Width and height.
        channels: Number of independent fields.
        rng: Drawn from, the coarsest octave first.
        octaves: Number of octaves, from the finest; None takes all that fit the size.
    """
    octaves = int(np.log2(min(size))) if octaves is None else octaves
    field = np.zeros((1, 1, channels), dtype=np.float32)
    for octave in reversed(range(octaves)):
        width, height = (-(-side // 2**octave) for side in size)
        shape = (height, width, channels)
        field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC).reshape(shape)
        field += rng.standard_normal(shape, dtype=np.float32)
    return field[..., 0] if channels == 1 else field
