"""Config section on the loss function."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from finetune.config.section import Auto, Section, build_name_validator

# Names in the tables of higher layers; a contract test compares them.
LOSS_NAMES = (
    "cross_entropy", "focal", "logit_adjusted", "ldam", "hinge", "squared_hinge", "mse", "bce",
    "asymmetric",
)  # fmt: skip


class LossConfig(Section):
    """Loss function."""

    name: Annotated[str, AfterValidator(build_name_validator(("auto", *LOSS_NAMES)))] = Field(
        "auto",
        description="cross_entropy, focal, logit_adjusted, ldam, hinge, squared_hinge, mse (Brier "
        "score) or package.module:function; of "
        "multi-label images bce or asymmetric (Ridnik et al. 2021); auto: by imbalance.strategy, "
        "bce for multi-label images",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="focal: gamma; logit_adjusted: tau; ldam: max_margin, scale; hinge, "
        "squared_hinge: margin; asymmetric: "
        "gamma_neg, gamma_pos, clip",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto",
        description="fraction of the target that is spread over all classes; auto: 0.1, and 0 "
        "with logit_adjusted, post_hoc at a given strength, a loss without label smoothing or a "
        "linear probe only",
    )
