"""PSNR of crops to a full decode with Pillow's antialiased resizing of the same box."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from scripts.benchmarks.lib.costs import format_spread
from scripts.benchmarks.lib.decoders import Pixels, decode_cv2, decode_pil
from scripts.benchmarks.lib.pipelines import CACHED_PX, SIZE_PX

Box = tuple[int, int, int, int]  # left, upper, right, lower
Cropper = Callable[[Box], Pixels]
Scores = dict[str, list[float]]  # dB, one per box

TUTORIAL_FRACTION = 0.08  # smallest fraction of the area in crops of the tutorial
DEFAULT_FRACTION = 0.35  # smallest fraction in crops of finetune's default augmentation


def compare_crops(files: list[Path], *, boxes: int) -> Scores:
    """Return the PSNR of every crop to Pillow's of the same box; ``boxes`` per file."""
    from PIL import Image

    rngs = {minimum: np.random.default_rng(0) for minimum in (TUTORIAL_FRACTION, DEFAULT_FRACTION)}
    scores: Scores = defaultdict(list)
    for file in files:
        full = Image.fromarray(decode_pil(file))
        drawn = {
            minimum: [draw_box(full.size, rng, min_fraction=minimum) for _ in range(boxes)]
            for minimum, rng in rngs.items()
        }
        croppers = create_croppers(file)
        # at scale 1/8, edges of crops are at multiples of 8 pixels: such boxes are compared as well
        for suffix, place in (("", keep_box), (", edges by 8", snap_to_grid)):
            for name, (minimum, crop) in croppers.items():
                for box in map(place, drawn[minimum]):
                    resized = full.crop(box).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
                    scores[name + suffix].append(compute_psnr(crop(box), np.asarray(resized)))
    return dict(scores)


def print_scores(scores: Scores) -> None:
    """Print the PSNR of the crops to Pillow's."""
    print(f"\n{'dB to PIL antialiased, area .08-1':46} {'median [min-max]':20} boxes")
    for name, values in scores.items():
        print(f"{name:46} {format_spread(values):20} {len(values)}")


def create_croppers(file: Path) -> dict[str, tuple[float, Cropper]]:
    """Return the smallest area fraction and the crop function of each contender for one file."""
    from finetune.data.cache.pixel_writer import decode_resized
    from finetune.data.images.decode import open_image
    from finetune.data.images.lazy_image import ArrayImage
    from finetune.types import DEFAULT_READ_OPTIONS

    full_bgr, size = decode_cv2(file), (SIZE_PX, SIZE_PX)
    height, width = full_bgr.shape[:2]
    entry = decode_resized(file, shorter_side=CACHED_PX, options=DEFAULT_READ_OPTIONS)
    cached_image = ArrayImage(entry.array, height=height, width=width)
    cached = f"finetune cached at {CACHED_PX}, area .35-1"
    return {
        "cv2 full + INTER_LINEAR": (TUTORIAL_FRACTION, partial(crop_with_cv2, full_bgr)),
        "finetune cold": (TUTORIAL_FRACTION, lambda box: open_image(file).crop(box, size)),
        cached: (DEFAULT_FRACTION, lambda box: cached_image.crop(box, size)),
    }


def crop_with_cv2(pixels: Pixels, box: Box) -> Pixels:
    """Return a box of BGR pixels as RGB, resized without antialiasing."""
    import cv2

    left, upper, right, lower = box
    crop = cv2.resize(pixels[upper:lower, left:right], (SIZE_PX, SIZE_PX))
    return np.asarray(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB), np.uint8)


def draw_box(size: tuple[int, int], rng: np.random.Generator, *, min_fraction: float) -> Box:
    """Return a random box as drawn by RandomResizedCrop, with an aspect ratio of 3/4 to 4/3.

    Args:
        size: Width and height of the image.
        rng: Random generator.
        min_fraction: Smallest fraction of the image's area.
    """
    while True:
        area = rng.uniform(min_fraction, 1) * size[0] * size[1]
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if width <= size[0] and height <= size[1]:
            left, upper = rng.integers(0, (size[0] - width + 1, size[1] - height + 1))
            return int(left), int(upper), int(left) + width, int(upper) + height


def keep_box(box: Box) -> Box:
    """Return the box unchanged."""
    return box


def snap_to_grid(box: Box) -> Box:
    """Return a box with its edges on multiples of 8 pixels."""
    left, upper, right, lower = (value // 8 * 8 for value in box)
    return left, upper, max(right, left + 8), max(lower, upper + 8)


def compute_psnr(a: Pixels, b: Pixels) -> float:
    """Return the peak signal-to-noise ratio in dB; 98 dB stands for equal pixels."""
    error = np.mean(np.square(np.float64(a) - np.float64(b)))
    return float(10 * np.log10(255**2 / max(float(error), 1e-5)))
