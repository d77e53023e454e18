"""What a frozen network is asked about images: what its head is given, and maps where it is cut."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.models.graph_split import Halves
from finetune.models.head import head_inputs


@dataclass(frozen=True, slots=True)
class MapForm:
    """What the maps of an image are.

    Attributes:
        shape: As (C, H, W) or (tokens, width).
        channels_last: Whether their first axis, the channels, is the last in memory.
    """

    shape: torch.Size
    channels_last: bool

    @classmethod
    def of(cls, maps: Tensor) -> "MapForm":
        """Return the form of some images' maps (B, ...)."""
        last = maps.ndim == 4 and maps.is_contiguous(memory_format=torch.channels_last)
        return cls(maps.shape[1:], last)

    def ready(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return kept rows (B, D) as maps (B, ...) on a device."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return rows.view(-1, *self.shape).to(device, memory_format=layout)


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

    def map_form(self, image: Tensor) -> MapForm | None:
        """Return what the maps of an image are, from an example (1, 3, H, W); None without."""
        if self.halves is None:
            return None
        with torch.inference_mode():
            return MapForm.of(self.halves.first(image))
