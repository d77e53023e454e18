"""Network of a file with its preprocessing inside."""

import torch
from torch import Tensor, nn

_EPSILON = 1e-7


class PhotoNetwork(nn.Module):
    """Module from whole photos, uint8, (B, H, W, C), to the logits of their classes, (B, K).

    Args:
        network: Module that returns probabilities, shape (B, K).
        is_multi_label: Whether each class has a probability of its own.
    """

    def __init__(self, network: nn.Module, *, is_multi_label: bool) -> None:
        super().__init__()
        self.network = network
        self.is_multi_label = is_multi_label

    def forward(self, photos: Tensor) -> Tensor:
        """Return the logits whose softmax, or sigmoid, are the probabilities."""
        probabilities: Tensor = self.network(photos)
        if self.is_multi_label:
            return torch.logit(probabilities, eps=_EPSILON)
        return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()
