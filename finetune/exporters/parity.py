"""Does an exported model say the same as the one that was measured?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor

from finetune.data.images.decode import decode_image
from finetune.errors import ModelError

MAX_DIFFERENCE = 1e-3
"""Largest difference of a probability that another preprocessing code and kernel may make."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the exported model is from the measured one, over real images.

    Attributes:
        num_images: Images that were compared.
        max_difference: Largest difference of a class probability, in [0, 1].
        same_top_class: Images with the same most probable class.
    """

    num_images: int
    max_difference: float
    same_top_class: int


def compare_timm_folder(
    folder: Path,
    images: Sequence[Path],
    *,
    expected: Tensor,
    classes: Sequence[str],
    temperature: float = 1.0,
    logit_shift: Sequence[float] | None = None,
) -> Parity:
    """Return how a timm folder, used by timm alone, compares with the measured model.

    Args:
        folder: What was exported.
        images: Image files, shape (N,).
        expected: The measured model's probabilities of them, shape (N, K).
        classes: Class names in index order.
        temperature: What its logits are divided by, where its head does not do so.
        logit_shift: What is added to them after that, where its head does not do so, shape (K,).

    Raises:
        ModelError: They differ by more than rounding, or timm reads other class names.
    """
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    if list(config["label_names"]) != list(classes):
        raise ModelError(f"{folder} gives classes {config['label_names']}, not {list(classes)}.")
    transform = create_transform(
        **resolve_model_data_config(network),  # type: ignore[no-untyped-call]
        is_training=False,
    )
    with torch.inference_mode():
        logits = torch.cat([network(transform(decode_image(path))[None]) for path in images])
    scaled = logits / temperature
    if logit_shift is not None:
        scaled = scaled + torch.tensor(logit_shift)
    return check_parity(scaled.softmax(1), expected, name=str(folder))


def check_parity(actual: Tensor, expected: Tensor, *, name: str) -> Parity:
    """Return the comparison of two tables of probabilities, shape (N, K).

    Raises:
        ModelError: They differ by more than rounding.
    """
    parity = Parity(
        num_images=len(expected),
        max_difference=float((actual - expected).abs().max()),
        same_top_class=int((actual.argmax(1) == expected.argmax(1)).sum()),
    )
    if not parity.max_difference <= MAX_DIFFERENCE:  # so that NaN is refused too
        raise ModelError(
            f"{name} differs from the measured model by {parity.max_difference:.2g} in a "
            f"probability (allowed: {MAX_DIFFERENCE:g}); it is not to be used."
        )
    return parity
