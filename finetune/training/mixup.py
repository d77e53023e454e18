"""Mixup and CutMix: mixtures of two training images and of their losses."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mixup:
    """Settings of mixup and CutMix; if both are enabled, a fair coin chooses one for each step.

    Attributes:
        mixup_alpha: Images are averaged with a weight drawn from Beta(alpha, alpha) (Zhang et al.
            2018, https://arxiv.org/abs/1710.09412); 0 disables mixup.
        cutmix_alpha: A box of one image replaces that of another; the fraction that is kept is
            drawn from Beta(alpha, alpha) (Yun et al. 2019, https://arxiv.org/abs/1905.04899);
            0 disables CutMix.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __bool__(self) -> bool:
        """Return whether mixup or CutMix is enabled."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

    def compute_loss(
        self,
        pixels: Tensor,
        labels: Tensor,
        *,
        generator: np.random.Generator,
        network: Callable[[Tensor], Tensor],
        criterion: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Compute the mean loss of mixtures: each image is paired with the one half a batch away.

        For a loss that is linear in its target, as all of ``LOSSES`` are, this is the loss of the
        mixed label; two calls with class indices also support losses that accept nothing else.
        Since the batches of the ranks interleave, any number of ranks with even batches mixes the
        same pairs; accumulated batches pair within themselves.

        Args:
            pixels: Normalised images, shape (B, C, H, W).
            labels: Class indices, shape (B,), or 1 for each label of an image, shape (B, K).
            generator: Generator of this step, the same on all ranks.
            network: Function from images to logits (B, K).
            criterion: Function from logits and labels to the mean loss.
        """
        half = len(pixels) // 2
        others = pixels.roll(half, 0)
        if self.cutmix_alpha and (not self.mixup_alpha or generator.random() < 0.5):
            lam = float(generator.beta(self.cutmix_alpha, self.cutmix_alpha))
            top, left, bottom, right = _sample_box(lam, *pixels.shape[2:], generator=generator)
            mixed = pixels.clone()
            mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
            height, width = pixels.shape[2:]
            lam = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            lam = float(generator.beta(self.mixup_alpha, self.mixup_alpha))
            mixed = torch.lerp(others, pixels, lam)
        logits = network(mixed)
        own_loss = criterion(logits, labels)
        return lam * own_loss + (1 - lam) * criterion(logits, labels.roll(half, 0))


def _sample_box(
    lam: float, height: int, width: int, *, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Sample top, left, bottom, right of a box of the image's aspect ratio.

    The box covers a fraction 1 - ``lam`` of the image, or less if it crosses the border, since its
    centre is drawn uniformly; the caller therefore recomputes lambda from the box.
    """
    scale = math.sqrt(1 - lam)
    half_height, half_width = scale * height / 2, scale * width / 2
    y, x = generator.uniform(0, height), generator.uniform(0, width)
    return (
        max(0, round(y - half_height)),
        max(0, round(x - half_width)),
        min(height, round(y + half_height)),
        min(width, round(x + half_width)),
    )
