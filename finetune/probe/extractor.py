"""What a frozen network is asked about images: what its head is given, and maps where it is cut."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.models.graph_split import SplitNetwork
from finetune.models.head import capture_head_inputs


@dataclass(frozen=True, slots=True)
class ActivationLayout:
    """What the maps of an image are.

    Attributes:
        shape: As (C, H, W) or (tokens, width).
        channels_last: Whether their first axis, the channels, is the last in memory.
    """

    shape: torch.Size
    channels_last: bool

    @classmethod
    def from_activations(cls, activations: Tensor) -> "ActivationLayout":
        """Return the form of some images' maps (B, ...)."""
        last = activations.ndim == 4 and activations.is_contiguous(
            memory_format=torch.channels_last
        )
        return cls(activations.shape[1:], last)

    def unflatten(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return kept rows (B, D) as maps (B, ...) on a device."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return rows.view(-1, *self.shape).to(device, memory_format=layout)


@dataclass(frozen=True, slots=True)
class FeatureExtractor:
    """Asks a network about images.

    Attributes:
        network: Takes normalised images (B, 3, H, W).
        head: Its classifier, whose input is the first answer.
        split: Where it is cut; the maps there are the second answer. None asks for one alone.
    """

    network: nn.Module
    head: nn.Linear
    split: SplitNetwork | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        """What tells each answer of this network from the others."""
        return ("features",) if self.split is None else ("features", f"maps-{self.split.node_name}")

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the answers, each (B, D)."""
        with capture_head_inputs(self.head) as seen:
            if self.split is None:
                self.network(images)
                return seen[:1]
            maps = self.split.trunk(images)
            self.split.last_stage(maps)
        return [seen[0], maps.flatten(1)]

    def compute_activation_layout(self, image: Tensor) -> ActivationLayout | None:
        """Return what the maps of an image are, from an example (1, 3, H, W); None without."""
        if self.split is None:
            return None
        with torch.inference_mode():
            return ActivationLayout.from_activations(self.split.trunk(image))
