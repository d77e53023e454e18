"""Options of a head with hidden layers."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from finetune.config.section import Section, describe_invalid_value
from finetune.lookup import suggest_name

# Names in a table of a higher layer; a contract test compares them.
ACTIVATION_NAMES = ("relu", "leaky_relu", "gelu", "silu", "tanh")


class MlpOptions(Section):
    """Hidden layers of ``model.head=mlp``."""

    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field((512,), min_length=1)
    drop_rate: float = Field(0.0, ge=0, lt=1)
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh"] = "relu"


def parse_mlp_options(params: dict[str, Any]) -> MlpOptions:
    """Return the options of ``model.head_params``.

    Raises:
        ValueError: One does not exist, or has an invalid value; the message names it.
    """
    unknown = next((key for key in params if key not in MlpOptions.model_fields), None)
    if unknown is not None:
        raise ValueError(
            f"head_params: unknown parameter '{unknown}'."
            f"{suggest_name(unknown, MlpOptions.model_fields)}"
        )
    try:
        return MlpOptions(**params)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ValueError(f"head_params.{name}: {describe_invalid_value([first])}") from error
