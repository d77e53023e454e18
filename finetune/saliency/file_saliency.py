"""Saliency maps of images by a trained model, and pictures of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import EncodedSource, FileSource
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.models.classifier import normalise
from finetune.saliency.saliency_maps import SaliencyMaps, compute_saliency
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions

ENSEMBLE_REASON = "An ensemble has no saliency map: its members see different things."

_BATCH_SIZE = 8

_COLORS = "inferno"
_PHOTO_OPACITY = 0.55


@dataclass(frozen=True, slots=True, eq=False)
class FileSaliency:
    """Saliency maps of images and what the network saw of them.

    Attributes:
        maps: Maps with their tests, in the order of the images.
        pixels: Pixels of the network's input, uint8 or uint16, shape (H, W, C), of the images that
            were read before the time was over.
    """

    maps: SaliencyMaps
    pixels: tuple[NDArray[np.uint8] | NDArray[np.uint16], ...]


def compute_file_saliency(
    bundle: ModelBundle,
    images: Sequence[Path] | EncodedSource,
    *,
    device: torch.device,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
    targets: Sequence[int] | None = None,
    budget_seconds: float | None = None,
    seed: int = 0,
    on_image: Callable[[], None] | None = None,
) -> FileSaliency:
    """Return saliency maps of images; an ensemble has none, for a stated reason.

    Args:
        bundle: Model, whose network is moved to the device.
        images: Readable image files, shape (N,), or their source.
        device: Device to compute on.
        options: Largest image that is read; channels and range of values are those of the card.
        targets: Class that each map is of, shape (N,); None for the predicted one.
        budget_seconds: Time after which no further image is begun; None for no limit.
        seed: Seed of the random maps.
        on_image: Callback after each image.

    Raises:
        DataError: An image cannot be read.
    """
    if bundle.members:
        return FileSaliency(SaliencyMaps((None,) * len(images), reason=ENSEMBLE_REASON), ())
    spec, card = bundle.card.spec, bundle.card
    read_options = replace(card.read_options, max_pixels=options.max_pixels)
    source = FileSource(images) if isinstance(images, Sequence) else images
    dataset = ImageDataset(source.replace_options(read_options), None, EvalTransform(spec))
    network = bundle.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels: list[NDArray[np.uint8] | NDArray[np.uint16]] = []

    def load() -> Iterator[Tensor]:
        for first in range(0, len(source), _BATCH_SIZE):
            rows = range(first, min(len(source), first + _BATCH_SIZE))
            images = dataset.__getitems__(rows)["image"]
            pixels.extend(images.numpy())
            yield normalise(images.to(device), mean=spec.mean, std=spec.std)

    maps = compute_saliency(
        network,
        load(),
        num_images=len(source),
        targets=targets,
        is_multi_label=card.is_multi_label,
        budget_seconds=budget_seconds,
        seed=seed,
        on_image=on_image,
    )
    return FileSaliency(maps, tuple(pixels))


def draw_overlay(
    pixels: NDArray[np.uint8] | NDArray[np.uint16], saliency_map: NDArray[np.float32]
) -> Image.Image:
    """Return an image with its saliency map laid over it: dark is little, yellow is much.

    Args:
        pixels: Pixels of the network's input, shape (H, W, C); of other than three channels, the
            first one is drawn in grey.
        saliency_map: Map in [0, 1], shape (H, W).
    """
    from torchcam.utils import overlay_mask  # takes a second, and matplotlib

    photo = draw_photo(pixels)
    mask = Image.fromarray(saliency_map.astype(np.float32))
    overlay: Image.Image = overlay_mask(photo, mask, colormap=_COLORS, alpha=_PHOTO_OPACITY)
    return overlay


def draw_photo(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> Image.Image:
    """Return the input of a network as an RGB image; see ``draw_overlay``."""
    eight_bit = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    shown = eight_bit if eight_bit.shape[2] == 3 else eight_bit[..., :1].repeat(3, axis=2)
    return Image.fromarray(np.ascontiguousarray(shown.astype(np.uint8)))
