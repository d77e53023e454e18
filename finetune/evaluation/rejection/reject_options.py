"""Value of the option ``--reject``: which answers are rejected."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.errors import ConfigError
from finetune.types import Tta

DEFAULT_FALSE_REJECTIONS = 0.05

_EXAMPLE = "precision=0.99, false_rejections=0.05, or both with a comma between them"


@dataclass(frozen=True, slots=True)
class RejectOptions:
    """Rules that reject answers.

    Attributes:
        precision: Wanted fraction of right answers among those that are not rejected, in (0, 1];
            None for no threshold of the probability.
        false_rejections: Wanted rate at which images of the classes are rejected as unlike the
            training images, in (0, 1); None for no threshold of the distance.
    """

    precision: float | None = None
    false_rejections: float | None = None

    def __str__(self) -> str:
        """Return the value of ``--reject`` that has these rules."""
        values = {"precision": self.precision, "false_rejections": self.false_rejections}
        return ",".join(f"{key}={value:g}" for key, value in values.items() if value is not None)


def parse_reject(text: "str | bool | RejectOptions | None") -> RejectOptions | None:
    """Return the rules of a value of ``--reject``; None without the option.

    Args:
        text: ``precision=P``, ``false_rejections=F`` or both with a comma between them; "" and True
            stand for ``false_rejections=0.05``. None and False are without the option.

    Raises:
        ConfigError: A key is unknown or given twice, or a value is not in its range.
    """
    if text is None or text is False or isinstance(text, RejectOptions):
        return text or None
    if text is True or not text.strip():
        return RejectOptions(false_rejections=DEFAULT_FALSE_REJECTIONS)
    values: dict[str, float] = {}
    for part in text.split(","):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if key not in ("precision", "false_rejections") or not separator:
            raise ConfigError(f"--reject {text}: {key or repr(part)} is no rule. Give {_EXAMPLE}.")
        if key in values:
            raise ConfigError(f"--reject {text}: {key} is given twice. Give {_EXAMPLE}.")
        values[key] = _parse_fraction(text, key, value)
    return RejectOptions(**values)


def check_reject_options(
    options: RejectOptions, *, tta: Tta, image_size: int | None, others: Mapping[str, Any]
) -> None:
    """Check that predictions are made as those of the validation images that chose the thresholds.

    Args:
        options: Rules of ``--reject``.
        tta: Views of each image.
        image_size: Side of the input; None for that of the model.
        others: Values of further options that change probabilities, by their names; None for those
            that are left as they are.

    Raises:
        ConfigError: Another option changes the predictions.
    """
    given = {f"--tta {tta}": tta is not Tta.NONE, f"--image-size {image_size}": image_size}
    given |= {f"{name} {value}": value is not None for name, value in others.items()}
    changed = next((option for option, is_given in given.items() if is_given), None)
    if changed is not None:
        raise ConfigError(
            f"--reject {options} cannot apply with {changed}: its thresholds were chosen on "
            f"validation images without it. Leave out one of both."
        )


def _parse_fraction(text: str, key: str, value: str) -> float:
    """Return a fraction above 0; 1 is a precision and no rate of false rejections.

    Raises:
        ConfigError: It is another value.
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if 0 < number < 1 or (number == 1 and key == "precision"):
        return number
    limit = "of at most 1" if key == "precision" else "below 1"
    hint = f" {value} percent is {key}={number / 100:g}." if 2 <= number < 100 else ""
    raise ConfigError(
        f"--reject {text}: {key}={value} is no fraction above 0 and {limit}.{hint} Give {_EXAMPLE}."
    )
