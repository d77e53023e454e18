"""Checks of values on a model card, before anything is built from them."""

import math
from collections.abc import Sequence
from typing import Any

from finetune.types import PreprocessSpec
from finetune.units import is_number

_MAX_SIDE = 16_384
"""Side of an input in pixels; no network takes more, and memory would not suffice."""


def parse_classes(names: Any) -> tuple[str, ...]:
    """Return the class names of a card.

    Raises:
        ValueError: They are no list of different names.
    """
    if not isinstance(names, list | tuple) or not names or not _are_texts(names):
        raise ValueError(f"classes are no list of names: {str(names)[:80]}")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"class '{name}' is listed twice")
        seen.add(name)
    return tuple(names)


def check_spec(spec: PreprocessSpec) -> None:
    """Check the preprocessing of a card.

    Raises:
        ValueError: A value cannot be; the message names it.
    """
    size = spec.input_size
    is_size = len(size) == 3 and all(type(side) is int and 1 <= side <= _MAX_SIDE for side in size)
    if not is_size:
        raise ValueError(f"input_size {size} is not channels, height and width")
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        is_valid = len(values) == size[0] and all(is_number(v) and math.isfinite(v) for v in values)
        if not is_valid or (name == "std" and min(values) <= 0):
            raise ValueError(f"{name} {values} is not a number for each of {size[0]} channels")
    if not is_number(spec.crop_pct) or not 0 < spec.crop_pct < math.inf:
        raise ValueError(f"crop_pct {spec.crop_pct!r} is not a positive number")


def _are_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
