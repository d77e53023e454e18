"""Mixtures of two training images, whose losses are mixed by the same shares."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mixup:
    """How images are mixed; where both ways are on, a fair coin takes one for each step.

    Attributes:
        mixup_alpha: Images are added up, by a share of Beta(mixup, mixup) (Zhang et al. 2018,
            https://arxiv.org/abs/1710.09412); 0: never.
        cutmix_alpha: A box of an image replaces that of another, of an area of Beta(cutmix, cutmix)
            (Yun et al. 2019, https://arxiv.org/abs/1905.04899); 0: never.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __bool__(self) -> bool:
        """Tell whether anything is mixed."""
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
        """Return the mean loss of mixtures: an image goes with the one half a batch further.

        For a loss that is linear in its target, as all of ``LOSSES`` are, that is the loss of the
        mixed label; two calls with classes also serve a loss that takes no others. As the ranks'
        batches interleave, any number of them that gets an even batch mixes the same
        pairs; accumulated batches pair within themselves.

        Args:
            pixels: Normalised images, shape (B, C, H, W).
            labels: Class indices, shape (B,).
            generator: Of this step, the same on all ranks.
            network: Images to logits (B, K).
            criterion: Logits and labels to the mean loss.
        """
        half = len(pixels) // 2
        others = pixels.roll(half, 0)
        if self.cutmix_alpha and (not self.mixup_alpha or generator.random() < 0.5):
            share = float(generator.beta(self.cutmix_alpha, self.cutmix_alpha))
            top, left, bottom, right = _sample_box(share, *pixels.shape[2:], generator=generator)
            mixed = pixels.clone()
            mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
            height, width = pixels.shape[2:]
            share = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            share = float(generator.beta(self.mixup_alpha, self.mixup_alpha))
            mixed = torch.lerp(others, pixels, share)
        logits = network(mixed)
        own = criterion(logits, labels)
        return share * own + (1 - share) * criterion(logits, labels.roll(half))


def _sample_box(
    lam: float, height: int, width: int, *, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of a box of the image's shape that leaves a share of it.

    Its centre lies anywhere, so that less may be cut; the share is then counted anew.
    """
    side = math.sqrt(1 - lam)
    tall, wide = side * height / 2, side * width / 2
    y, x = generator.uniform(0, height), generator.uniform(0, width)
    return (
        max(0, round(y - tall)),
        max(0, round(x - wide)),
        min(height, round(y + tall)),
        min(width, round(x + wide)),
    )
