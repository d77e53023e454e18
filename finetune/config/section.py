"""What sections of the config tree are made of."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from finetune.lookup import suggest_name

Auto = Literal["auto"]


def build_name_validator(
    names: Sequence[str], *, allow_custom: bool = True
) -> Callable[[str], str]:
    """Return a validator that takes a known name, or ``package.module:attribute``."""

    def check(value: str) -> str:
        if value in names or (allow_custom and ":" in value):
            return value
        raise ValueError(f"unknown name '{value}'.{suggest_name(value, names)}")

    return check


def coerce_on_off(value: Any) -> Any:
    """Undo YAML 1.1, which reads a bare ``off`` as false and ``on`` as true."""
    return ("on" if value else "off") if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(coerce_on_off)]


class Section(BaseModel):
    """A part of the tree: unknown keys are refused, values are not changed after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
