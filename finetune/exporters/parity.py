"""Verification that an exported model gives the same probabilities as the evaluated one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor

from finetune.data.images.decode import open_image
from finetune.data.images.lazy_image import LazyImage
from finetune.data.images.multichannel import Planes, get_whole_image
from finetune.errors import ModelError
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions

MAX_ABS_DIFF = 1e-3
"""Largest difference of a probability due to other preprocessing code and kernels."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Difference between an exported model and the evaluated one on real images.

    Attributes:
        num_images: Number of compared images.
        max_abs_diff: Largest absolute difference of a class probability, in [0, 1].
        num_same_top1: Number of images with the same most probable class.
        num_same_labels: Number of images with the same labels at the thresholds of a multi-label
            model; None for other models.
    """

    num_images: int
    max_abs_diff: float
    num_same_top1: int
    num_same_labels: int | None = None


def compare_timm_folder(
    folder: Path,
    images: Sequence[Path],
    *,
    expected: Tensor,
    classes: Sequence[str],
    temperature: float = 1.0,
    logit_shift: Sequence[float] | None = None,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
    thresholds: Sequence[float] | None = None,
    tolerance: float = MAX_ABS_DIFF,
) -> Parity:
    """Compare a timm folder, loaded and run by timm alone, with the evaluated model.

    Args:
        folder: Exported folder.
        images: Image files, shape (N,).
        expected: Probabilities of the evaluated model, shape (N, K).
        classes: Class names in index order.
        temperature: Divisor of the exported model's logits that its head does not include.
        logit_shift: Shift of the logits after the division that its head does not include, shape
            (K,); None for none.
        options: How image files are read for the model.
        thresholds: Thresholds of a multi-label model, shape (K,); None for other models.
        tolerance: Largest allowed difference of a class probability.

    Raises:
        ModelError: A probability differs by more than ``tolerance``, or timm reads other class
            names.
    """
    actual = predict_with_timm(
        folder,
        images,
        classes=classes,
        temperature=temperature,
        logit_shift=logit_shift,
        options=options,
        is_multi_label=thresholds is not None,
    )
    return check_parity(
        actual, expected, name=str(folder), thresholds=thresholds, tolerance=tolerance
    )


def predict_with_timm(
    folder: Path,
    images: Sequence[Path],
    *,
    classes: Sequence[str],
    temperature: float = 1.0,
    logit_shift: Sequence[float] | None = None,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
    is_multi_label: bool = False,
) -> Tensor:
    """Return the probabilities of a timm folder that timm loads and runs alone, shape (N, K).

    Args:
        folder: Exported folder.
        images: Image files, shape (N,).
        classes: Class names in index order.
        temperature: Divisor of the logits that the head does not include.
        logit_shift: Shift of the logits after the division that the head does not include, shape
            (K,); None for none.
        options: How image files are read for the model.
        is_multi_label: Whether each class has a probability of its own.

    Raises:
        ModelError: timm reads other class names.
    """
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    if list(config["label_names"]) != list(classes):
        raise ModelError(
            f"{folder} has classes {config['label_names']}, not {list(classes)}. Export it again."
        )
    data_config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    transform = (
        _build_rgb_transform(data_config)
        if options.is_rgb
        else (_build_channels_transform(data_config))
    )
    with torch.inference_mode():
        opened = (open_image(path, options=options) for path in images)
        logits = torch.cat([network(transform(image)[None]) for image in opened])
    scaled = logits / temperature
    if logit_shift is not None:
        scaled = scaled + torch.tensor(logit_shift)
    return scaled.sigmoid() if is_multi_label else scaled.softmax(1)


def _build_rgb_transform(data_config: Mapping[str, Any]) -> Callable[[LazyImage], Tensor]:
    """Return timm's transform of a whole image."""
    transform = create_transform(**data_config, is_training=False)

    def apply(image: LazyImage) -> Tensor:
        pixels: Tensor = transform(image.to_pil())
        return pixels

    return apply


def _build_channels_transform(data_config: Mapping[str, Any]) -> Callable[[LazyImage], Tensor]:
    """Return timm's transform of each channel as a grey image, normalised together."""
    config = dict(data_config)
    size = (1, *config.pop("input_size")[1:])
    means, stds = (torch.tensor(config.pop(key))[:, None, None] for key in ("mean", "std"))
    channels = [
        create_transform(
            size, **config, mean=(float(mean),), std=(1.0,), is_training=False, normalize=False
        )
        for mean in means
    ]

    def apply(image: LazyImage) -> Tensor:
        whole = get_whole_image(image)
        assert isinstance(whole, Planes), "images of other channels than RGB of 8 bits"
        pairs = zip(channels, whole.images, strict=True)
        pixels = torch.cat([torch.as_tensor(resize(plane)) for resize, plane in pairs]) / 255
        return (pixels - means) / stds

    return apply


def check_parity(
    actual: Tensor,
    expected: Tensor,
    *,
    name: str,
    thresholds: Sequence[float] | None = None,
    tolerance: float = MAX_ABS_DIFF,
) -> Parity:
    """Compare the probabilities of two models.

    Args:
        actual: Probabilities of the exported model, shape (N, K).
        expected: Probabilities of the evaluated model, shape (N, K).
        name: Name of the exported model for messages.
        thresholds: Thresholds of a multi-label model, shape (K,); None for other models.
        tolerance: Largest allowed difference of a class probability.

    Raises:
        ModelError: A probability differs by more than ``tolerance``.
    """
    num_same_labels = None
    if thresholds is not None:
        limits = torch.tensor(thresholds)
        num_same_labels = int(((actual >= limits) == (expected >= limits)).all(1).sum())
    parity = Parity(
        num_images=len(expected),
        max_abs_diff=float((actual - expected).abs().max()),
        num_same_top1=int((actual.argmax(1) == expected.argmax(1)).sum()),
        num_same_labels=num_same_labels,
    )
    if not parity.max_abs_diff <= tolerance:  # NaN raises, too
        raise ModelError(
            f"{name} differs from the evaluated model by {parity.max_abs_diff:.2g} in a "
            f"probability (allowed: {tolerance:g}). Do not use this export; please report it."
        )
    return parity
