"""Max-norm constraint and L1 penalty of weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True, slots=True, eq=False)
class UnitLimit:
    """Largest norm of the units of a weight.

    Attributes:
        weight: Matrix (out, in), kernel (out, in, ...), or the kernel (in, out / groups, ...) of a
            transposed convolution.
        max_norm: Largest L2 norm of a unit's incoming weights, above 0.
        transposed_groups: Groups of a transposed convolution; 0 for any other layer.
    """

    weight: Tensor
    max_norm: float
    transposed_groups: int = 0


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_LAYERS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def find_unit_limits(network: nn.Module, max_norms: Mapping[str, float]) -> list[UnitLimit]:
    """Return the limits of the linear layers and convolutions of a network.

    Position embeddings, class tokens and bias tables have no units and are left out.

    Args:
        network: Network.
        max_norms: Name of a parameter to the largest norm of a unit; any parameters.
    """
    limits = {}
    for prefix, module in network.named_modules():
        name = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        path = f"{prefix}.{name}" if prefix else name
        weight = getattr(module, name, None)
        if path not in max_norms or not isinstance(weight, Tensor):
            continue
        if isinstance(module, _TRANSPOSED_LAYERS):
            limits[path] = UnitLimit(weight, max_norms[path], transposed_groups=module.groups)
        elif isinstance(module, (*_LAYERS, nn.MultiheadAttention)):
            limits[path] = UnitLimit(weight, max_norms[path])
    return list(limits.values())


def apply_max_norm(limit: UnitLimit) -> None:
    """Scale each unit's incoming weights down to its largest norm, in place.

    Srivastava et al. 2014, section 5.1, https://jmlr.org/papers/v15/srivastava14a.html. A unit is a
    row of a linear layer and an output channel of a convolution.
    """
    weight, groups = limit.weight, limit.transposed_groups
    with torch.no_grad():
        if groups:
            norms = weight.reshape(groups, -1, *weight.shape[1:]).flatten(3).norm(dim=(1, 3))
            norms = norms.repeat_interleave(len(weight) // groups, dim=0)
        else:
            norms = weight.flatten(1).norm(dim=1)
        factors = (limit.max_norm / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1)
        weight.mul_(factors.view(*factors.shape, *(1,) * (weight.ndim - factors.ndim)))


def constrain_after_step(optimizer: Optimizer, limits: Sequence[UnitLimit]) -> None:
    """Apply the max-norm constraint after each step of an optimizer to the weights that train.

    The ranks of a run hold the same weights and compute the same. An average of constrained weights
    (SWA) fulfils the constraint, too, since a ball is convex; so do the weights between a
    constrained start and the last epoch.

    Args:
        optimizer: Optimizer of the weights.
        limits: Limits of the units.
    """

    def constrain(*_: Any) -> None:
        for limit in limits:
            if limit.weight.requires_grad:
                apply_max_norm(limit)

    optimizer.register_step_post_hook(constrain)


def compute_l1_penalty(module: nn.Module, names: Sequence[str], *, factor: float) -> Tensor:
    """Compute ``factor`` times the sum of the absolute values of some parameters, a scalar.

    Args:
        module: Module that owns the parameters.
        names: Names of the parameters in the module.
        factor: Factor of the sum.
    """
    parameters = dict(module.named_parameters())
    return factor * torch.stack([parameters[name].abs().sum() for name in names]).sum()
