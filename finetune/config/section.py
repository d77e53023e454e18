"""Base class and value types of the config sections."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from finetune.lookup import suggest_name

Auto = Literal["auto"]


def build_name_validator(
    names: Sequence[str], *, allow_custom: bool = True
) -> Callable[[str], str]:
    """Return a validator of known names and, if allowed, of ``package.module:attribute``."""

    def check(value: str) -> str:
        if value in names or (allow_custom and ":" in value):
            return value
        raise ValueError(f"unknown name '{value}'.{suggest_name(value, names)}")

    return check


def coerce_on_off(value: Any) -> Any:
    """Return "on" or "off" for a boolean, as YAML 1.1 reads a bare ``on`` as true."""
    return ("on" if value else "off") if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(coerce_on_off)]


class Section(BaseModel):
    """Section of the config; unknown keys are errors, and values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
