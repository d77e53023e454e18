"""Config section on imbalanced classes: sampling, class weights and changes of the classifier."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from finetune.config.section import Auto, Section, build_name_validator

# Names in the tables of higher layers; a contract test compares them.
SAMPLER_NAMES = (
    "uniform", "weighted", "sqrt", "effective_number", "oversample", "undersample", "progressive",
    "deferred", "abundant_first",
)  # fmt: skip
IMBALANCE_NAMES = (
    "none", "weighted", "sqrt", "effective_number", "oversample", "undersample", "progressive",
    "drs", "drw", "abundant_first", "class_weights", "focal", "logit_adjusted", "ldam", "ldam_drw",
    "crt", "tau_norm", "post_hoc",
)  # fmt: skip
CLASS_WEIGHT_NAMES = ("balanced", "effective_number")


class ImbalanceConfig(Section):
    """Treatment of imbalanced classes."""

    strategy: Annotated[
        str, AfterValidator(build_name_validator(("auto", *IMBALANCE_NAMES), allow_custom=False))
    ] = Field(
        "auto",
        description="none; weighted, sqrt, effective_number, oversample, undersample, "
        "progressive, drs or abundant_first (sampling); class_weights or drw (weights in the "
        "loss); focal, logit_adjusted, ldam or ldam_drw (loss); crt, tau_norm or post_hoc "
        "(classifier, after training); auto: post_hoc from an imbalance ratio of 5, else none",
    )
    sampler: Annotated[str, AfterValidator(build_name_validator(("auto", *SAMPLER_NAMES)))] = Field(
        "auto",
        description="uniform, weighted, sqrt, effective_number, oversample, undersample, "
        "progressive, deferred, abundant_first or package.module:function; auto: by strategy",
    )
    sampler_params: dict[str, Any] = Field(
        default_factory=dict,
        description="weighted: power; effective_number: beta; deferred: start_fraction; "
        "abundant_first: first_fraction, min_relative_size, power",
    )
    class_weights: Annotated[
        str,
        AfterValidator(
            build_name_validator(("auto", "none", *CLASS_WEIGHT_NAMES), allow_custom=False)
        ),
    ] = Field(
        "auto",
        description="weights of the classes in the loss: none, balanced or effective_number; "
        "auto: by strategy",
    )
    class_weights_params: dict[str, Any] = Field(
        default_factory=dict, description="effective_number: beta"
    )
    class_weights_start_fraction: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto",
        description="fraction of the epochs after which class weights apply; auto: by strategy, "
        "else 0",
    )
    head_rebalancing: Literal["auto", "none", "crt", "tau_norm", "post_hoc"] = Field(
        "auto",
        description="change of the classifier after training: crt fits it again with balanced "
        "classes and tau_norm equalizes the norms of its weights (Kang et al. 2020), post_hoc "
        "adjusts probabilities to classes of equal size (Menon et al. 2021); auto: by strategy",
    )
    post_hoc_strength: Annotated[float, Field(ge=0, le=1)] | Literal["auto", "held_out"] = Field(
        "auto",
        description="strength of post_hoc, from 0 (probabilities as trained) to 1 (classes of "
        "equal size); held_out: chosen after training on held-out images for trainer.monitor, 0 "
        "where none is clearly better; auto: held_out if strategy is auto, else 1",
    )
    allow_double_correction: bool = Field(
        False, description="allow several settings that correct the same imbalance"
    )
