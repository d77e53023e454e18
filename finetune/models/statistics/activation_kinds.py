"""Activations by kind: which functions and modules they are, and where they are flat."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

DeathRule = Literal["zero", "small", "never"]
"""Outputs of a dead unit: all zero, all small beside the layer's, or none, as it cannot die."""

_FLAT = 0.01
"""Distance from the end of a range at which a bounded activation counts as flat."""

DEATH_RULES: Mapping[str, DeathRule] = {
    "relu": "zero",
    "relu6": "zero",
    "hardswish": "zero",
    "gelu": "small",
    "silu": "small",
    "mish": "small",
    "softplus": "small",
}
"""How units of a kind die; those of other kinds cannot."""

_KINDS_BY_CLASS = {
    "relu": "relu",
    "relu6": "relu6",
    "gelu": "gelu",
    "gelutanh": "gelu",
    "quickgelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
    "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "softmax": "softmax",
    "elu": "elu",
    "celu": "elu",
    "selu": "selu",
    "leakyrelu": "leaky_relu",
    "prelu": "prelu",
    "rrelu": "leaky_relu",
    "softplus": "softplus",
}
"""Kind by the class name of a module in lower case, of torch or timm."""

_KINDS_BY_FUNCTION: Mapping[Callable[..., Any], str] = {
    functional.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    Tensor.relu: "relu",
    Tensor.relu_: "relu",
    functional.relu6: "relu6",
    functional.gelu: "gelu",
    functional.silu: "silu",
    functional.mish: "mish",
    functional.hardswish: "hardswish",
    functional.hardsigmoid: "hardsigmoid",
    functional.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    Tensor.sigmoid: "sigmoid",
    Tensor.sigmoid_: "sigmoid",
    functional.tanh: "tanh",
    torch.tanh: "tanh",
    Tensor.tanh: "tanh",
    Tensor.tanh_: "tanh",
    functional.softmax: "softmax",
    torch.softmax: "softmax",
    Tensor.softmax: "softmax",
    functional.elu: "elu",
    functional.celu: "elu",
    functional.selu: "selu",
    functional.leaky_relu: "leaky_relu",
    functional.softplus: "softplus",
}

_SELU_FLOOR = -1.7581


def find_module_kind(module: nn.Module) -> str | None:
    """Return the kind of an activation module; None for other modules."""
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return _find_hardtanh_kind(module.min_val, module.max_val)
    return _KINDS_BY_CLASS.get(type(module).__name__.lower())


def find_function_kind(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Return the kind of a call of an activation function; None for other functions."""
    if function is functional.hardtanh:
        bounds = [*args[1:3], -1.0, 1.0][:2] if len(args) > 2 else [-1.0, 1.0]
        low, high = kwargs.get("min_val", bounds[0]), kwargs.get("max_val", bounds[1])
        return _find_hardtanh_kind(low, high)
    return _KINDS_BY_FUNCTION.get(function)


def _find_hardtanh_kind(low: float, high: float) -> str | None:
    """Return the kind of a clamp; None where its bounds are not those of a known one."""
    return {(0.0, 6.0): "relu6", (-1.0, 1.0): "hardtanh"}.get((float(low), float(high)))


def find_flat(kind: str, values: Tensor) -> Tensor | None:
    """Return which outputs lie at a flat end of an activation; None where it has no such end.

    A zero of a ReLU is none: it is how the activation selects, and a unit that is always zero is
    dead. A row of a softmax is flat where one position has all.

    Args:
        kind: Kind of the activation.
        values: Its outputs, with the dimension of the softmax last.

    Returns:
        Booleans that broadcast to the shape of ``values``.
    """
    if kind == "sigmoid":
        return (values < _FLAT) | (values > 1 - _FLAT)
    if kind == "hardsigmoid":
        return (values <= 0) | (values >= 1)
    if kind in ("tanh", "hardtanh"):
        return values.abs() > 1 - _FLAT
    if kind == "relu6":
        return values >= 6
    if kind == "elu":
        return values < -(1 - _FLAT)
    if kind == "selu":
        return values < (1 - _FLAT) * _SELU_FLOOR
    if kind == "softmax":
        return values.amax(dim=-1, keepdim=True) > 1 - _FLAT
    return None
