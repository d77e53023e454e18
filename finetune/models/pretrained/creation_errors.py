"""Errors of the creation of timm models, with their remedies."""

import re
from collections.abc import Mapping
from typing import Any

from finetune.errors import FinetuneError, ModelError
from finetune.models.pretrained.weights import (
    WeightsSource,
    explain_hub_error,
    extract_first_line,
)

_RESERVED_KWARGS = {
    "num_classes": "the images",
    "pretrained": "model.weights",
    "pretrained_cfg": "model.pretrained_cfg",
    "pretrained_cfg_overlay": "model.pretrained_cfg",
}
"""Arguments of ``timm.create_model`` that ``model.kwargs`` cannot set, and their source."""


def check_kwargs(kwargs: Mapping[str, Any]) -> None:
    """Check that ``model.kwargs`` sets nothing that other settings determine.

    Raises:
        ModelError: It does.
    """
    for key, source in _RESERVED_KWARGS.items():
        if key in kwargs:
            raise ModelError(f"model.kwargs: '{key}' comes from {source}. Leave it out.")


def explain_creation_error(
    backbone: str, source: WeightsSource, arguments: Mapping[str, Any], error: Exception
) -> FinetuneError:
    """Return an error with a remedy for timm's error."""
    reason = extract_first_line(error)
    unknown = re.search(r"unexpected keyword argument '(.+)'", reason)
    if isinstance(error, TypeError) and unknown is not None:
        is_cfg = reason.startswith("PretrainedCfg")
        section = "pretrained_cfg" if is_cfg else "kwargs"
        return ModelError(
            f"model.{section}: '{backbone}' has no "
            f"{'preprocessing' if is_cfg else 'argument'} '{unknown[1]}'. Leave it out."
        )
    if isinstance(error, TypeError) and arguments:
        return ModelError(f"'{backbone}' does not accept model.kwargs={dict(arguments)}: {reason}.")
    if "No pretrained weights exist" in reason or "Invalid pretrained" in reason:
        return ModelError(f"{reason} Pass --weights random or a local file.")
    hub_error = explain_hub_error(backbone, source, error)
    if hub_error is not None:
        return hub_error
    if "is inconsistent with input_size" in reason:
        return ModelError(
            f"{source.label} has weights for other input channels than the images have: "
            f"{reason.partition('. ')[0]}. Set data.channels to those of the weights, or "
            f"pass other --weights."
        )
    if source.pretrained and source.hub is None:
        return ModelError(
            f"{source.label} does not match '{backbone}': {reason}. Check --backbone."
        )
    return ModelError(f"'{backbone}' cannot be created: {reason}.")
