"""Values of ``model.pretrained_cfg``, the preprocessing that weights expect."""

from collections.abc import Mapping
from typing import Any

from finetune.errors import ConfigError
from finetune.units import format_value, is_number

INTERPOLATION_NAMES = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")

_CHOICES = {"interpolation": INTERPOLATION_NAMES, "crop_mode": CROP_MODES}


def check_preprocessing(cfg: Mapping[str, Any]) -> None:
    """Check that the values of the known keys have the right form.

    Raises:
        ConfigError: One has not; the message names it.
    """
    prefix = "model.pretrained_cfg: "
    checks = {
        "mean": (_is_list, "a list of numbers, as [0.5, 0.5, 0.5]"),
        "std": (_is_positive_list, "a list of numbers above 0, as [0.5, 0.5, 0.5]"),
        "crop_pct": (_is_fraction, "a number above 0 and at most 1"),
        "input_size": (_is_size, "channels and sides in pixels, as [3, 224, 224]"),
    }
    for key, (is_valid, expected) in checks.items():
        if key in cfg and not is_valid(cfg[key]):
            found = format_value(cfg[key])
            raise ConfigError(f"{prefix}found {key}={found}, expected {expected}.")
    for key, names in _CHOICES.items():
        if key in cfg and cfg[key] not in names:
            found = format_value(cfg[key])
            raise ConfigError(f"{prefix}found {key}={found}, expected one of {', '.join(names)}.")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(is_number, value))


def _is_positive_list(value: Any) -> bool:
    return _is_list(value) and min(value) > 0


def _is_fraction(value: Any) -> bool:
    return is_number(value) and 0 < value <= 1


def _is_size(value: Any) -> bool:
    return _is_list(value) and len(value) == 3 and all(isinstance(v, int) and v > 0 for v in value)
