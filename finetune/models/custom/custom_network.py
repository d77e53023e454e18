"""Networks of one's own, named as ``package.module:function``, with their weights."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from finetune.errors import FinetuneError, ModelError
from finetune.lookup import has_parameter
from finetune.models.custom.code_import import describe_type, format_signature, import_function
from finetune.models.custom.contract import DEFAULT_CFG, find_missing_keys, supply_contract
from finetune.models.layer_groups import find_classifier_parameters
from finetune.models.pretrained.weights import WeightsSource
from finetune.units import format_count


def create_custom_network(
    backbone: str,
    *,
    num_classes: int,
    arguments: Mapping[str, Any],
    image_size: int | None = None,
) -> nn.Module:
    """Return the network that a function of the user builds, with what timm's contract needs.

    Supplied if it is missing: ``get_classifier`` (the linear layer that computes the logits),
    ``num_classes`` and ``pretrained_cfg`` (see ``find_missing_keys``). ``group_matcher`` may be
    missing: each child of the network is then a layer group.

    Args:
        backbone: Import path, ``package.module:function``; a class of networks is a function, too.
        num_classes: Number of classes K.
        arguments: Further arguments of the function; ``in_chans`` is passed where the function
            takes it, and needed by other numbers of channels than 3.
        image_size: Side of the input in pixels, passed as ``img_size`` where the function takes it;
            None for that of ``pretrained_cfg``.

    Raises:
        ModelError: The function cannot be imported or fails, or its result is not such a network.
    """
    function = import_function(backbone)
    arguments = dict(arguments)
    in_chans = arguments.pop("in_chans", 3)
    if _takes(function, "in_chans") or (in_chans != 3 and has_parameter(function, "in_chans")):
        arguments["in_chans"] = in_chans
    elif in_chans != 3:
        raise ModelError(
            f"'{backbone}' has no parameter in_chans, so that it cannot take images of "
            f"{format_count(in_chans, 'channel')}. Write {format_signature(backbone)} and pass "
            f"in_chans to the first layer."
        )
    if image_size is not None and _takes(function, "img_size"):
        arguments.setdefault("img_size", image_size)
    try:
        network = function(num_classes=num_classes, **arguments)
    except FinetuneError:
        raise
    except Exception as error:  # the user's own code
        raise ModelError(_explain_call_error(backbone, arguments, error)) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"'{backbone}' returns {describe_type(network)}, not a torch.nn.Module. Return the "
            f"network."
        )
    supply_contract(
        backbone, network, num_classes=num_classes, in_chans=in_chans, image_size=image_size
    )
    return network


def load_weights(network: nn.Module, source: WeightsSource, overlay: Mapping[str, Any]) -> None:
    """Load a network's weights from a local file, and apply overrides of its preprocessing.

    A classifier of another number of classes is left out, as timm does it.

    Args:
        network: Network as ``create_custom_network`` returns it.
        source: Local file or folder, or none.
        overlay: Overrides of its preprocessing; ``state_dict`` has the weights.

    Raises:
        ModelError: The weights have other shapes.
    """
    cfg: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    cfg.update({key: value for key, value in overlay.items() if key in DEFAULT_CFG})
    missing = (key for key in find_missing_keys(network) if key not in overlay)
    network.missing_keys = tuple(missing)  # type: ignore[assignment]
    state = dict(overlay.get("state_dict", {}))
    if not source.pretrained:
        return
    own = network.state_dict()
    for name in find_classifier_parameters(network):
        if name in state and state[name].shape != own[name].shape:
            del state[name]
    try:
        network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise ModelError(
            f"{source.label} does not match '{cfg['architecture']}': {line} Check --backbone and "
            f"model.kwargs."
        ) from error


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of this name."""
    return name in inspect.signature(function).parameters


def _explain_call_error(backbone: str, arguments: Mapping[str, Any], error: Exception) -> str:
    if not (isinstance(error, TypeError) and "unexpected keyword argument" in str(error)):
        return f"'{backbone}' fails with {type(error).__name__}: {error}. Correct the function."
    if "'in_chans'" in str(error):
        return (
            f"'{backbone}' does not take images of "
            f"{format_count(arguments['in_chans'], 'channel')}: {error}. Write "
            f"{format_signature(backbone)} and pass in_chans to the first layer."
        )
    return (
        f"'{backbone}' cannot be called: {error}. Write {format_signature(backbone)}, or leave "
        f"the argument out of model.kwargs."
    )
