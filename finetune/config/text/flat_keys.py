"""Nested values of a config by dotted key."""

from collections.abc import Mapping
from typing import Any


def flatten_keys(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of the sections by dotted key; values that are mappings stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and not prefix:
            flat |= flatten_keys(value, f"{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
