"""Preprocessing by Pillow and NumPy from the metadata of a file alone, as its users write it.

It shares nothing with the transforms of training and evaluation, which the export is compared with,
and opens ordinary photos by Pillow alone, see ``open_plain_photo``. Other files are opened as for
training.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finetune.data.images.decode import open_image
from finetune.data.images.multichannel import MultichannelImage, Planes, get_whole_image
from finetune.exporters.plain_photo import open_plain_photo
from finetune.types import ReadOptions

Array = NDArray[Any]

BATCH_SIZE = 8
"""Images of a batch: more than one, as users of the file run it."""


@dataclass(frozen=True, slots=True)
class FileDescription:
    """Description of a file's input and output, from its metadata.

    Attributes:
        input_size: Channels, height and width of the input.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        resample: Resampling filter.
        crop_pct: Fraction of the resized side that the crop keeps.
        crop_mode: "center", "squash" or "border".
        takes_photos: Whether the preprocessing is part of the file.
        is_multi_label: Whether each class has a probability of its own.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Image.Resampling
    crop_pct: float
    crop_mode: str
    takes_photos: bool
    is_multi_label: bool


def parse_description(metadata: Mapping[str, str]) -> FileDescription:
    """Return the description of a file from its metadata, see ``build_metadata``."""
    channels, height, width = json.loads(metadata["input_size"])
    return FileDescription(
        (channels, height, width),
        tuple(json.loads(metadata["mean"])),
        tuple(json.loads(metadata["std"])),
        Image.Resampling[metadata["interpolation"].upper()],
        float(metadata["crop_pct"]),
        metadata["crop_mode"],
        metadata["output"] == "probabilities",
        metadata["activation"] == "sigmoid",
    )


def read_photo(path: Path, options: ReadOptions) -> Array:
    """Return the pixels of an image file, uint8 or uint16, shape (H, W, C)."""
    photo = open_plain_photo(path, options)
    if photo is not None:
        return np.array(photo)
    image = open_image(path, options=options)
    return image.pixels if isinstance(image, MultichannelImage) else np.array(image.to_pil())


def prepare_pixels(path: Path, options: ReadOptions, file: FileDescription) -> Array:
    """Return the normalised pixels of an image file, float32, shape (C, h, w)."""
    photo = open_plain_photo(path, options)
    image = get_whole_image(open_image(path, options=options)) if photo is None else photo
    channels = image.images if isinstance(image, Planes) else image.split()
    resized = [
        _resize_and_crop(channel, file, round(255 * mean))
        for channel, mean in zip(channels, file.mean, strict=True)
    ]
    pixels = np.stack([np.asarray(channel, np.float32) for channel in resized]) / np.float32(255)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (file.mean, file.std))
    normalised: Array = (pixels - mean) / std
    return normalised


def to_probabilities(logits: Array, file: FileDescription) -> Array:
    """Return the class probabilities, float64, of logits, both of shape (N, K)."""
    values = logits.astype(np.float64)
    if file.is_multi_label:
        sigmoid: Array = 1 / (1 + np.exp(-values))
        return sigmoid
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    softmax: Array = powers / powers.sum(axis=1, keepdims=True)
    return softmax


def _resize_and_crop(image: Image.Image, file: FileDescription, fill: int) -> Image.Image:
    """Return one channel of an image at the size of the input."""
    height, width = file.input_size[1:]
    scaled = [math.floor(side / file.crop_pct) for side in (height, width)]
    if file.crop_mode == "squash":
        size = (scaled[1], scaled[0])
    elif file.crop_mode == "center" and scaled[0] == scaled[1]:
        short = min(image.size)
        size = (image.width * scaled[0] // short, image.height * scaled[0] // short)
    else:
        ratios = image.height / scaled[0], image.width / scaled[1]
        ratio = max(ratios) if file.crop_mode == "border" else min(ratios)
        size = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))
    resized = image.resize(size, file.resample)
    left, top = (
        _find_start(side, crop) for side, crop in zip(resized.size, (width, height), strict=True)
    )
    canvas = Image.new(image.mode, (width, height), fill if file.crop_mode == "border" else 0)
    canvas.paste(resized, (-left, -top))
    return canvas


def _find_start(side: int, crop: int) -> int:
    """Return where a centre crop begins on a side; negative where the side is shorter."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def predict_by_description(
    run: Callable[[Array], Tensor],
    paths: Sequence[Path],
    metadata: Mapping[str, str],
    options: ReadOptions,
) -> Tensor:
    """Return the class probabilities of image files, shape (N, K), as the metadata of a file say.

    Args:
        run: Function that runs the file on its input: normalised pixels, (B, C, H, W), or photos.
        paths: Image files, shape (N,).
        metadata: Metadata of the file.
        options: How image files are read.
    """
    file = parse_description(metadata)
    if file.takes_photos:
        return torch.cat([run(read_photo(path, options)[None]) for path in paths])
    chunks = []
    for start in range(0, len(paths), BATCH_SIZE):
        batch = [prepare_pixels(path, options, file) for path in paths[start : start + BATCH_SIZE]]
        logits = run(np.stack(batch)).numpy()
        chunks.append(torch.from_numpy(to_probabilities(logits, file)).float())
    return torch.cat(chunks)
