"""Synthetic JPEG photos with the spectrum and the byte density of real ones.

Luminance and colour are noise of equal energy per octave, as in photos (power 1/f^2), overlaid with
the edges of shapes. Fine detail is added in patches: parts of every photo are smooth, others busy.
Its strength is chosen so that the files have the requested bytes per pixel at one JPEG quality.
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
SCENE_RESOLUTION = 64  # waves per width; finer ones belong to the detail
COLORS = np.array([[1, 1, 1], [0.3, 0, -0.3], [-0.15, 0.3, -0.15]], np.float32)  # light, 2 chroma
MEGAPIXEL = 10**6


def estimate_bytes_per_px(width: int, height: int) -> float:
    """Return the bytes per pixel of photos: ImageNet's up to a megapixel, else a camera's."""
    pixels = width * height
    if pixels > 4 * MEGAPIXEL:
        return 0.25
    return 0.29 if pixels > MEGAPIXEL / 2 else 0.315


def make_photos(
    folder: Path, size: tuple[int, int], *, count: int, bytes_per_px: float, seed: int = 0
) -> list[Path]:
    """Write photos into one folder per class, and return their paths.

    Args:
        folder: Parent of the class folders.
        size: Width and height in px.
        count: Number of photos.
        bytes_per_px: Mean file size divided by the number of pixels.
        seed: Seed; every photo is a function of it and its index.
    """
    strength = _find_strength(size, bytes_per_px, seed)
    files = [folder / CLASSES[i % len(CLASSES)] / f"{i:04}.jpg" for i in range(count)]
    for index, file in enumerate(files):
        rng = np.random.default_rng((seed, index))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(
            _encode_jpeg(_add_detail(_make_scene(size, rng), _make_detail(size, rng), strength))
        )
    return files


def compute_mean_bytes(files: list[Path]) -> float:
    """Return the mean size of files in bytes."""
    return sum(file.stat().st_size for file in files) / len(files)


def _find_strength(size: tuple[int, int], bytes_per_px: float, seed: int) -> float:
    """Return the strength of detail at which a photo has the requested bytes per pixel."""
    rng = np.random.default_rng((seed, 2**31))
    scene, detail = _sample_bands(_make_scene(size, rng)), _sample_bands(_make_detail(size, rng))
    low, high = 0.0, 100.0
    for _ in range(12):
        middle = (low + high) / 2
        num_bytes = len(_encode_jpeg(_add_detail(scene, detail, middle)))
        is_small = num_bytes < bytes_per_px * detail.size
        low, high = (middle, high) if is_small else (low, middle)
    return low


def _sample_bands(field: NDArray[Any]) -> NDArray[Any]:
    """Return about a megapixel of horizontal bands of a field, each one JPEG block high."""
    height, width = field.shape[:2]
    step = 1 + height * width // MEGAPIXEL
    bands = field[: height - height % BLOCK_PX].reshape(-1, BLOCK_PX, *field.shape[1:])[::step]
    return bands.reshape(-1, *field.shape[1:])


def _encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return a baseline JPEG with 4:2:0 chroma subsampling, as cameras write them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def _add_detail(scene: NDArray[np.uint8], detail: Field, strength: float) -> NDArray[np.uint8]:
    """Return the sum of scene and detail, uint8, shape (H, W, 3)."""
    return np.clip(scene + strength * detail[..., None], 0, 255).astype(np.uint8)


def _make_scene(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return smooth luminance and colour with the edges of shapes, uint8, shape (H, W, 3)."""
    width, height = (-(-side // 2 ** _count_detail_octaves(size)) for side in size)
    small = _make_noise((width, height), 3, rng) @ COLORS
    soft = np.clip(128 + 45 * small / small.std(), 0, 255).astype(np.uint8)
    soft = cv2.resize(soft, size, interpolation=cv2.INTER_CUBIC)
    shapes = soft.copy()
    for _ in range(24):
        corners = rng.uniform(-0.25, 0.25, (5, 2)) * rng.uniform(0.1, 1) + rng.uniform(0, 1, 2)
        points = (corners * size).astype(np.int32)
        color = rng.uniform(0, 255, 3).tolist()
        cv2.fillPoly(shapes, [cv2.convexHull(points)], color, lineType=cv2.LINE_AA)
    mixed: NDArray[np.uint8] = cv2.addWeighted(soft, 0.6, shapes, 0.4, 0)
    return mixed


def _make_detail(size: tuple[int, int], rng: np.random.Generator) -> Field:
    """Return noise finer than the scene's, in smooth patches, shape (H, W)."""
    width, height = size
    patches = _make_noise((width // 16, height // 16), 1, rng)
    patches = np.square(patches / patches.std()).clip(0, 4)
    fine = _make_noise(size, 1, rng, octaves=_count_detail_octaves(size))
    detail: Field = fine * cv2.resize(patches, size, interpolation=cv2.INTER_LINEAR)
    return detail


def _count_detail_octaves(size: tuple[int, int]) -> int:
    """Return the number of octaves finer than the scene's, which increases with the resolution."""
    return max(1, round(float(np.log2(size[0] / SCENE_RESOLUTION))))


def _make_noise(
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
