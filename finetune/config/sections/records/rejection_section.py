"""Config section on what a bundle keeps for ``predict --reject``."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finetune.config.section import Section, coerce_on_off


class RejectionConfig(Section):
    """Statistics in the bundle from which ``predict --reject`` rejects answers."""

    enabled: Annotated[Literal["on", "off"], BeforeValidator(coerce_on_off)] = Field(
        "on",
        description="keep the features of up to 10,000 training images and the distances of the "
        "validation images in the bundle, for predict --reject; one more pass over these images",
    )
