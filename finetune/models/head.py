"""Linear head of a network: its inputs, its weights, and a digest of the backbone before it."""

import copy
import hashlib
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from finetune.models.layer_groups import find_classifier_parameters


def find_linear_head(network: nn.Module) -> nn.Linear | None:
    """Return the linear layer that computes the logits, or None for any other kind of head."""
    head_parameters = find_classifier_parameters(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            names = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
            if names == head_parameters and module.bias is not None:
                return module
    return None


@contextmanager
def capture_head_inputs(head: nn.Linear) -> Iterator[list[Tensor]]:
    """Collect the inputs of the head within the block, one tensor per forward pass."""
    inputs: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        handle.remove()


def set_head(head: nn.Linear, *, weight: Tensor, bias: Tensor) -> None:
    """Copy a weight (K, D) and a bias (K,) into the head."""
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def fold_temperature_and_shift(
    network: nn.Module, *, temperature: float = 1.0, shift: Sequence[float] | None = None
) -> nn.Module | None:
    """Return a copy of a network with temperature scaling and a logit shift folded into its head.

    Args:
        network: Network whose logits are scaled; it is left as it is.
        temperature: Divisor of the logits.
        shift: Shift of the divided logits, shape (K,); None for no shift.

    Returns:
        The copy, exact up to rounding; None where the network has no linear head.
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
    """Return a SHA-256 digest of the names, shapes and values of everything but the classifier.

    It is part of the names of feature stores on disk and must not change between releases.
    """
    return _compute_digest(network, left_out=find_classifier_parameters(network))


def compute_network_digest(network: nn.Module) -> str:
    """Return a SHA-256 digest of the names, shapes and values of everything."""
    return _compute_digest(network, left_out=())


def _compute_digest(network: nn.Module, *, left_out: Container[str]) -> str:
    digest = hashlib.sha256(_get_architecture_id(network).encode())
    for name, tensor in network.state_dict().items():
        if name not in left_out:
            digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _get_architecture_id(network: nn.Module) -> str:
    """Return the ID of an architecture in digests: our explicit one, else timm's class path."""
    default = f"{type(network).__module__}.{type(network).__name__}"
    return str(getattr(network, "architecture_id", default))
