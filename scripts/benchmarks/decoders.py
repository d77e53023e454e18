"""The decoders of JPEG files that are timed, each in processes of its own.

Imports no decoder: each imports its library when it is called.
"""

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from costs import Cost, measure
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

PRELOADED = "concurrent.futures.process cv2 numpy.typing PIL.Image simplejpeg torchvision.io"


def decode_pil(file: Path) -> Pixels:
    """Return the pixels as most datasets read them."""
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def decode_cv2(file: Path) -> Pixels:
    """Return the pixels as OpenCV orders them, blue first."""
    import cv2

    return cv2.imread(str(file), cv2.IMREAD_COLOR)


def decode_torchvision(file: Path) -> Any:
    """Return the pixels as a tensor, shape (3, H, W)."""
    from torchvision import io as images

    return images.decode_jpeg(images.read_file(str(file)), mode=images.ImageReadMode.RGB)


def decode_simplejpeg(file: Path) -> Pixels:
    """Return the pixels."""
    import simplejpeg

    return simplejpeg.decode_jpeg(file.read_bytes())


def decode_eighth(file: Path) -> Pixels:
    """Return an eighth of each side, the least that a JPEG can be decoded to."""
    import simplejpeg

    return simplejpeg.decode_jpeg(file.read_bytes(), min_height=1, min_width=1, min_factor=8)


DECODERS: dict[str, Callable[[Path], Any]] = {
    "PIL convert to numpy": decode_pil,
    "cv2.imread": decode_cv2,
    "torchvision decode_jpeg": decode_torchvision,
    "simplejpeg": decode_simplejpeg,
    "simplejpeg 1/8": decode_eighth,
}


def decode_all(decode: Callable[[Path], Any], files: list[Path], *, least_seconds: float) -> Cost:
    """Return the cost of decoding some files, one after another."""
    decode(files[0])  # imports its library
    gc.collect()
    return measure(lambda: len([decode(file).shape for file in files]), least_seconds=least_seconds)


def in_fresh_process(work: Callable[[], Cost]) -> Cost:
    """Return what work costs in a new process, whose memory nothing has used before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED.split())
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work).result()
