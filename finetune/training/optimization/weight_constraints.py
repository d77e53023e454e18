"""Max-norm constraint and L1 penalty of weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def apply_max_norm(weight: Tensor, max_norm: float) -> None:
    """Scale each unit's incoming weights down to a norm of at most ``max_norm``, in place.

    Srivastava et al. 2014, section 5.1, https://jmlr.org/papers/v15/srivastava14a.html. A unit is a
    row of a linear layer and an output channel of a convolution.

    Args:
        weight: Matrix (out, in) or kernel (out, in, ...).
        max_norm: Largest L2 norm, above 0.
    """
    with torch.no_grad():
        norms = weight.flatten(1).norm(dim=1)
        factors = (max_norm / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1)
        weight.mul_(factors.view(-1, *(1,) * (weight.ndim - 1)))


def constrain_after_step(optimizer: Optimizer, max_norms: Mapping[Tensor, float]) -> None:
    """Apply the max-norm constraint after each step of an optimizer to the weights that train.

    The ranks of a run hold the same weights and compute the same. An average of constrained weights
    (SWA) fulfils the constraint, too, since a ball is convex.

    Args:
        optimizer: Optimizer of the weights.
        max_norms: Weight to the largest norm of a unit.
    """

    def constrain(*_: Any) -> None:
        for weight, max_norm in max_norms.items():
            if weight.requires_grad:
                apply_max_norm(weight, max_norm)

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
