"""What a frozen network is asked about images: what its head is given, and maps where it is cut."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.models.cut import Halves
from finetune.models.head import head_inputs


@dataclass(frozen=True, slots=True)
class Answers:
    """Asks a network about images.

    Attributes:
        network: Takes normalised images (B, 3, H, W).
        head: Its classifier, whose input is the first answer.
        halves: Where it is cut; the maps there are the second answer. None asks for one alone.
    """

    network: nn.Module
    head: nn.Linear
    halves: Halves | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What tells each answer of this network from the others."""
        return ("features",) if self.halves is None else ("features", f"maps-{self.halves.at}")

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the answers, each (B, D)."""
        with head_inputs(self.head) as seen:
            if self.halves is None:
                self.network(images)
                return seen[:1]
            maps = self.halves.first(images)
            self.halves.second(maps)
        return [seen[0], maps.flatten(1)]

    def map_shape(self, images: Tensor) -> torch.Size:
        """Return the shape of the maps of an image, as (C, H, W), from an example (1, 3, H, W)."""
        assert self.halves is not None, "there are no maps without a cut"
        with torch.inference_mode():
            shape: torch.Size = self.halves.first(images).shape[1:]
        return shape
