"""The linear classifier of a network, and what it is given."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from finetune.models.groups import find_classifier_parameters


def find_linear_head(network: nn.Module) -> nn.Linear | None:
    """Return the one linear layer that makes logits, or None where the network has another head."""
    owned = find_classifier_parameters(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            names = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
            if names == owned and module.bias is not None:
                return module
    return None


@contextmanager
def capture_head_inputs(head: nn.Linear) -> Iterator[list[Tensor]]:
    """Collect what the head is given in the block, one tensor for each forward pass."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()


def set_head(head: nn.Linear, *, weight: Tensor, bias: Tensor) -> None:
    """Give the head other weights, of shapes (K, D) and (K,)."""
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def fold_temperature_and_shift(
    network: nn.Module, *, temperature: float = 1.0, shift: Sequence[float] | None = None
) -> nn.Module | None:
    """Return a copy of a network whose linear head divides its logits, and then adds to them.

    Args:
        network: With logits of its own.
        temperature: What they are divided by.
        shift: What is added to them after that, shape (K,); None adds nothing.

    Returns:
        The copy, exact but for rounding; None where the network has another head.
    """
    network = copy.deepcopy(network)
    head = find_linear_head(network)
    if head is None:
        return None
    weight, bias = (tensor.detach().double() / temperature for tensor in (head.weight, head.bias))
    if shift is not None:
        bias = bias + torch.tensor(shift, dtype=torch.float64, device=bias.device)
    set_head(head, weight=weight, bias=bias)
    return network


def compute_backbone_digest(network: nn.Module) -> str:
    """Return a fingerprint of everything in a network but its classifier: names, shapes, bits."""
    owned = find_classifier_parameters(network)
    digest = hashlib.sha256(f"{type(network).__module__}.{type(network).__name__}".encode())
    for name, tensor in network.state_dict().items():
        if name not in owned:
            digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
