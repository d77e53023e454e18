"""How near crops come to a full decode with Pillow's antialiased resizing of the same box."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from costs import spread
from decoders import Pixels, decode_cv2, decode_pil
from pipelines import CACHED_PX, SIZE_PX

Box = tuple[int, int, int, int]  # left, upper, right, lower
Cropper = Callable[[Box], Pixels]
Scores = dict[str, list[float]]  # dB, one a box

TUTORIAL_FRACTION = 0.08  # of the area, the least that the tutorial's crops take
DEFAULT_FRACTION = 0.35  # that finetune's default augmentation takes: its cache is for these


def compare_crops(files: list[Path], *, boxes: int) -> Scores:
    """Return the PSNR of every crop to Pillow's of the same box; ``boxes`` per file."""
    from PIL import Image

    rngs = {least: np.random.default_rng(0) for least in (TUTORIAL_FRACTION, DEFAULT_FRACTION)}
    scores: Scores = defaultdict(list)
    for file in files:
        full = Image.fromarray(decode_pil(file))
        drawn = {
            least: [random_box(full.size, rng, least_fraction=least) for _ in range(boxes)]
            for least, rng in rngs.items()
        }
        croppers = croppers_of(file)
        # at 1/8 an edge of a crop lies on a multiple of 8 pixels: there it is compared, too
        for suffix, placed in (("", as_drawn), (", edges by 8", on_grid)):
            for name, (least, crop) in croppers.items():
                for box in map(placed, drawn[least]):
                    resized = full.crop(box).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
                    scores[name + suffix].append(psnr(crop(box), np.asarray(resized)))
    return dict(scores)


def print_scores(scores: Scores) -> None:
    """Print how near the crops come to Pillow's."""
    print(f"\n{'dB to PIL antialiased, area .08-1':46} {'median [least-most]':20} boxes")
    for name, values in scores.items():
        print(f"{name:46} {spread(values):20} {len(values)}")


def croppers_of(file: Path) -> dict[str, tuple[float, Cropper]]:
    """Return, for one file, the least fraction of each contender's boxes and how it crops."""
    from finetune.data.cache.pixel_writer import shrunk
    from finetune.data.images.decode import DEFAULT_MAX_PIXELS
    from finetune.data.images.lazy_image import ArrayImage, open_picture

    full_bgr, size = decode_cv2(file), (SIZE_PX, SIZE_PX)
    height, width = full_bgr.shape[:2]
    stored = shrunk(file, shorter_side=CACHED_PX, max_pixels=DEFAULT_MAX_PIXELS)
    kept = ArrayPicture(stored.array, height=height, width=width)
    cached = f"finetune cached at {CACHED_PX}, area .35-1"
    return {
        "cv2 full + INTER_LINEAR": (TUTORIAL_FRACTION, partial(cv2_crop, full_bgr)),
        "finetune cold": (TUTORIAL_FRACTION, lambda box: open_picture(file).crop(box, size)),
        cached: (DEFAULT_FRACTION, lambda box: kept.crop(box, size)),
    }


def cv2_crop(pixels: Pixels, box: Box) -> Pixels:
    """Return a box of BGR pixels as RGB, resized without antialiasing."""
    import cv2

    left, upper, right, lower = box
    crop = cv2.resize(pixels[upper:lower, left:right], (SIZE_PX, SIZE_PX))
    return cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)


def random_box(size: tuple[int, int], rng: np.random.Generator, *, least_fraction: float) -> Box:
    """Return a box as RandomResizedCrop draws them: so much of the area to all, ratio 3/4 to 4/3.

    Args:
        size: Width and height of the image.
        rng: Drawn from.
        least_fraction: Of the image's area.
    """
    while True:
        area = rng.uniform(least_fraction, 1) * size[0] * size[1]
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if width <= size[0] and height <= size[1]:
            left, upper = rng.integers(0, (size[0] - width + 1, size[1] - height + 1))
            return int(left), int(upper), int(left) + width, int(upper) + height


def as_drawn(box: Box) -> Box:
    """Return the box itself."""
    return box


def on_grid(box: Box) -> Box:
    """Return a box with its edges on multiples of 8 pixels."""
    left, upper, right, lower = (value // 8 * 8 for value in box)
    return left, upper, max(right, left + 8), max(lower, upper + 8)


def psnr(a: Pixels, b: Pixels) -> float:
    """Return the peak signal-to-noise ratio in dB; 98 dB stands for equal pixels."""
    error = np.mean(np.square(np.float64(a) - np.float64(b)))
    return float(10 * np.log10(255**2 / max(error, 1e-5)))
