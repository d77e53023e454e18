"""Networks with changed parameters and statistics, and comparisons of their state."""

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn


def randomise(network: nn.Module, *, seed: int = 0) -> None:
    """Change every vector and every all-zero weight of a network.

    Afterwards no branch is disabled by a zero scale, the classifier passes gradients, and equal
    outputs imply equal weights and statistics. Variances stay positive.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if not tensor.is_floating_point():
                continue
            if tensor.ndim <= 1:
                tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.2)
            elif not tensor.any():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 10)


def set_batch_norm_statistics(network: nn.Module, images: Tensor) -> None:
    """Set BatchNorm statistics to those of ``images``, so that deep outputs depend on the image."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        network.train()(images)
    network.eval()


def copy_state(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def find_changed(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    """Return the names of the parameters and buffers that changed in any bit."""
    return {n for n, tensor in network.state_dict().items() if not torch.equal(tensor, before[n])}


def create_small_swin(num_classes: int = 3) -> nn.Module:
    """Return a Swin transformer of two blocks for images of 64 x 64 pixels."""
    network: nn.Module = SwinTransformer(
        img_size=64,
        patch_size=4,
        window_size=4,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(2, 2),
        num_classes=num_classes,
    )
    return network
