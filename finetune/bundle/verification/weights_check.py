"""Comparison of stored weights with the network that is built for them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_MAX_NAMED = 2


def check_num_classes(state: Mapping[str, Tensor], num_classes: int) -> None:
    """Check that weights may have so many classes, before a network with as many is built.

    Raises:
        ValueError: No tensor has that many rows or columns.
    """
    if not any(num_classes in tensor.shape for tensor in state.values()):
        raise ValueError(
            f"the card has {num_classes:,} classes, and no tensor of the weights has as many rows"
        )


def check_state(state: Mapping[str, Tensor], network: nn.Module) -> None:
    """Check that weights have the keys and shapes of a network, and valid values.

    Raises:
        ValueError: They do not; the message names what differs.
    """
    expected = network.state_dict()
    differences = [
        _describe_keys([key for key in expected if key not in state], "missing"),
        _describe_keys([key for key in state if key not in expected], "not of this network"),
        _describe_shapes(state, expected),
    ]
    if found := [text for text in differences if text]:
        raise ValueError(f"the weights do not fit the card: {'; '.join(found)}")
    parameters = {name for name, _ in network.named_parameters()}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        # buffers may be masks; a class of target prior 0 has the bias -inf
        invalid = tensor.isnan()
        if name in parameters:
            invalid |= tensor.isposinf()
        if bool(torch.any(invalid)):
            raise ValueError(
                f"{int(invalid.sum()):,} of {tensor.numel():,} values of '{name}' in the weights "
                f"are NaN or infinite"
            )


def _describe_keys(keys: Sequence[str], what: str) -> str:
    if not keys:
        return ""
    named = ", ".join(f"'{key}'" for key in keys[:_MAX_NAMED])
    others = f" and {len(keys) - _MAX_NAMED} others" if len(keys) > _MAX_NAMED else ""
    return f"{named}{others} {'is' if len(keys) == 1 else 'are'} {what}"


def _describe_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    different = [
        f"'{key}' has the shape {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    named = ", ".join(different[:_MAX_NAMED])
    num_others = len(different) - _MAX_NAMED
    return f"{named} and {num_others} others" if num_others > 0 else named
