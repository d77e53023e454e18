"""Saliency maps of images by a trained model, and pictures of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from finetune.bundle.bundle import ModelBundle
from finetune.data.dataset import load_view
from finetune.data.images.source import EncodedSource, FileSource
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import DataError
from finetune.models.classifier import normalise
from finetune.saliency.saliency_maps import SaliencyMaps, SaliencyResult, compute_saliency
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
            were read before the time was over; black ones of an image that cannot be read.
        unreadable: Reasons of the images that cannot be read, which have no map, by their places.
    """

    maps: SaliencyMaps
    pixels: tuple[NDArray[np.uint8] | NDArray[np.uint16], ...]
    unreadable: Mapping[int, str] = field(default_factory=dict)


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

    An image that cannot be read has no map, and stops nothing.

    Args:
        bundle: Model, whose network is moved to the device.
        images: Image files, shape (N,), or their source.
        device: Device to compute on.
        options: Largest image that is read; channels and range of values are those of the card.
        targets: Class that each map is of, shape (N,); None for the predicted one.
        budget_seconds: Time after which no further image is begun; None for no limit.
        seed: Seed of the random maps.
        on_image: Callback after each map.
    """
    if bundle.members:
        return FileSaliency(SaliencyMaps((None,) * len(images), reason=ENSEMBLE_REASON), ())
    spec, card = bundle.card.spec, bundle.card
    read_options = replace(card.read_options, max_pixels=options.max_pixels)
    source = FileSource(images) if isinstance(images, Sequence) else images
    source = source.replace_options(read_options)
    network = bundle.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = _Loader(source, EvalTransform(spec), targets)
    maps = compute_saliency(
        network,
        (
            normalise(torch.from_numpy(images).to(device), mean=spec.mean, std=spec.std)
            for images in loader.iterate()
        ),
        num_images=len(source),
        targets=loader.targets,
        is_multi_label=card.is_multi_label,
        budget_seconds=budget_seconds,
        seed=seed,
        on_image=on_image,
    )
    results: list[SaliencyResult | None] = [None] * len(source)
    for row, result in zip(loader.rows, maps.results, strict=False):
        results[row] = result
    maps = replace(maps, results=tuple(results))
    return FileSaliency(maps, tuple(loader.pixels), loader.unreadable)


class _Loader:
    """Batches of the images that can be read, in their order.

    Args:
        source: Images, shape (N,).
        transform: Transform to the network's input.
        targets: Class of each image, shape (N,); None for none.

    Attributes:
        pixels: Pixels of the images so far.
        rows: Rows of those that could be read.
        targets: Their classes; None for none.
        unreadable: Reasons of the others, by their rows.
    """

    def __init__(
        self, source: EncodedSource, transform: EvalTransform, targets: Sequence[int] | None
    ) -> None:
        self._source = source
        self._transform = transform
        self._targets = targets
        self.pixels: list[NDArray[np.uint8] | NDArray[np.uint16]] = []
        self.rows: list[int] = []
        self.targets: list[int] | None = None if targets is None else []
        self.unreadable: dict[int, str] = {}

    def iterate(self) -> Iterator[NDArray[Any]]:
        """Yield pixels, shape (B, H, W, C); the attributes are those of the images until then."""
        for first in range(0, len(self._source), _BATCH_SIZE):
            start = len(self.rows)
            for row in range(first, min(len(self._source), first + _BATCH_SIZE)):
                self._load(row)
            if rows := self.rows[start:]:
                yield np.stack([self.pixels[row] for row in rows])

    def _load(self, row: int) -> None:
        try:
            self.pixels.append(load_view(self._source, row, self._transform, None).pixels)
        except DataError as error:
            self.unreadable[row] = str(error)
            black = np.zeros((*self._transform.get_size(0), 3), np.uint8)
            self.pixels.append(black)
            return
        self.rows.append(row)
        if self.targets is not None and self._targets is not None:
            self.targets.append(self._targets[row])


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
