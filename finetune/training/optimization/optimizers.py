"""Optimizers by name: torch's own, with the parameters that the config may set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

RESERVED_PARAMS = {
    "params": "the network",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "momentum": "optim.momentum",
    "nesterov": "optim.nesterov",
    "fused": "trainer.precision",
    "foreach": "trainer.precision",
    "maximize": "the loss, which is minimized",
    "capturable": "the trainer",
    "differentiable": "the trainer",
}
"""Keywords of torch's optimizers that ``optim.params`` cannot set, and their source."""


@dataclass(frozen=True, slots=True)
class OptimizerEntry:
    """One of torch's optimizers.

    Attributes:
        create: torch's class.
        lr_range: First and last learning rate of the head in a range test.
        has_momentum: Whether it takes ``momentum``.
        has_nesterov: Whether it takes ``nesterov``.
        is_fusible: Whether one kernel can update all parameters on every device.
    """

    create: Callable[..., Optimizer]
    lr_range: tuple[float, float]
    has_momentum: bool = False
    has_nesterov: bool = False
    is_fusible: bool = False


OPTIMIZERS: Mapping[str, OptimizerEntry] = {
    "adamw": OptimizerEntry(torch.optim.AdamW, (1e-7, 1.0), is_fusible=True),
    "sgd": OptimizerEntry(
        torch.optim.SGD, (1e-5, 10.0), has_momentum=True, has_nesterov=True, is_fusible=True
    ),
    "adam": OptimizerEntry(torch.optim.Adam, (1e-7, 1.0), is_fusible=True),
    "rmsprop": OptimizerEntry(torch.optim.RMSprop, (1e-7, 1.0), has_momentum=True),
    "adadelta": OptimizerEntry(torch.optim.Adadelta, (1e-4, 100.0)),
    "adagrad": OptimizerEntry(torch.optim.Adagrad, (1e-6, 10.0)),
}
"""Optimizers by name, called with the parameter groups and the keywords of ``optim.params``."""


def create_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    params: Mapping[str, Any] | None = None,
    fused: bool = True,
) -> Optimizer:
    """Create one of torch's optimizers.

    Args:
        name: Name in ``OPTIMIZERS``.
        groups: Parameter groups, each with its learning rate and weight decay.
        momentum: Momentum of SGD and RMSprop; the others have none and ignore it.
        nesterov: Whether SGD evaluates the momentum one step ahead (Nesterov); others ignore it.
        params: Further keywords of torch's class, such as ``betas``.
        fused: Whether one kernel updates all parameters, where torch has one. A fused optimizer
            unscales fp16 gradients itself, so that Lightning cannot clip them.

    Raises:
        KeyError: There is no such optimizer.
        TypeError: A keyword does not exist or has a value of the wrong type.
        ValueError: A value is out of its range.
    """
    entry = OPTIMIZERS[name]
    kwargs = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in (params or {}).items()
    }
    if entry.has_momentum:
        kwargs["momentum"] = momentum
    if entry.has_nesterov:
        kwargs["nesterov"] = nesterov
    if entry.is_fusible:
        kwargs["fused"] = fused
    return entry.create(groups, **kwargs)
