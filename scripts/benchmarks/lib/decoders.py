"""Timed decoders of JPEG files, each in its own processes.

Each decoder imports its library when it is called.
"""

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.benchmarks.lib.costs import Cost, measure

Pixels = NDArray[np.uint8]

PRELOADED = "concurrent.futures.process cv2 numpy.typing PIL.Image simplejpeg torchvision.io"


def decode_pil(file: Path) -> Pixels:
    """Return the pixels, decoded as in most datasets."""
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def decode_cv2(file: Path) -> Pixels:
    """Return the pixels in OpenCV's order, blue first."""
    import cv2

    pixels: Any = cv2.imread(str(file), cv2.IMREAD_COLOR)
    return np.asarray(pixels, np.uint8)


def decode_torchvision(file: Path) -> Any:
    """Return the pixels as a tensor, shape (3, H, W)."""
    from torchvision import io as images

    return images.decode_jpeg(images.read_file(str(file)), mode=images.ImageReadMode.RGB)


def decode_simplejpeg(file: Path) -> Pixels:
    """Return the pixels."""
    import simplejpeg

    pixels: Pixels = simplejpeg.decode_jpeg(file.read_bytes())
    return pixels


def decode_eighth(file: Path) -> Pixels:
    """Return the image at 1/8 of each side, the smallest scale of JPEG decoding."""
    import simplejpeg

    pixels: Pixels = simplejpeg.decode_jpeg(
        file.read_bytes(), min_height=1, min_width=1, min_factor=8
    )
    return pixels


DECODERS: dict[str, Callable[[Path], Any]] = {
    "PIL convert to numpy": decode_pil,
    "cv2.imread": decode_cv2,
    "torchvision decode_jpeg": decode_torchvision,
    "simplejpeg": decode_simplejpeg,
    "simplejpeg 1/8": decode_eighth,
}


def decode_all(decode: Callable[[Path], Any], files: list[Path], *, min_seconds: float) -> Cost:
    """Return the cost of decoding files one after another."""
    decode(files[0])  # imports the library
    gc.collect()
    return measure(lambda: len([decode(file).shape for file in files]), min_seconds=min_seconds)


def run_in_new_process(work: Callable[[], Cost]) -> Cost:
    """Return the cost of a function in a new process with unused memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED.split())
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work).result()
