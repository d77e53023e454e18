"""Config section on the report that a run writes at its end."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finetune.config.section import Section, coerce_on_off


class ReportConfig(Section):
    """Report of a finished run: report.html in the run folder."""

    enabled: Annotated[Literal["on", "off"], BeforeValidator(coerce_on_off)] = Field(
        "on",
        description="write report.html at the end of the run; off: finetune report RUN writes it "
        "later. Folds of a cross-validation and trials of a search write none of their own",
    )
    network_health: Annotated[Literal["on", "off"], BeforeValidator(coerce_on_off)] = Field(
        "on",
        description="measure the layers of the network on 8 to 64 training images before the "
        "first epoch and after the last: dead and saturated units, correlated feature maps, "
        "gradients and weight changes, in network.json",
    )
