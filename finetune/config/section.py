"""What sections of the config tree are made of."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from finetune.lookup import did_you_mean

Auto = Literal["auto"]


def known_name(names: Sequence[str], *, own_code: bool = True) -> Callable[[str], str]:
    """Return a validator that takes a known name, or ``package.module:attribute``."""

    def check(value: str) -> str:
        if value in names or (own_code and ":" in value):
            return value
        raise ValueError(f"unknown name '{value}'.{did_you_mean(value, names)}")

    return check


def on_and_off_are_words(value: Any) -> Any:
    """Undo YAML 1.1, which reads a bare ``off`` as false and ``on`` as true."""
    return ("on" if value else "off") if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(on_and_off_are_words)]


class Section(BaseModel):
    """A part of the tree: unknown keys are refused, values are not changed after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
