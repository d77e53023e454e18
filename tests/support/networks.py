"""What tests of networks share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: small layers gain nothing from more, and lose much on shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def randomise(network: nn.Module, *, seed: int = 0) -> None:
    """Move every vector and every zero weight away from its initial value.

    After it no branch is closed by a zero scale, the classifier passes gradients, and equal
    outputs mean equal weights and statistics. Variances stay positive.
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


def settle(network: nn.Module, images: Tensor) -> None:
    """Set BatchNorm statistics to those of ``images``; without, deep outputs ignore the image."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        network.train()(images)
    network.eval()


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def changed(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    """Return the names of the parameters and buffers of which any bit moved."""
    return {n for n, tensor in network.state_dict().items() if not torch.equal(tensor, before[n])}
