"""The sections of the config tree on learning: what trains when, by which loss and rates."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from finetune.config.section import Auto, Section, Switch, build_name_validator

# The built-in rows of the tables on the floors above; a contract test holds them equal.
UNFREEZE_NAMES = ("all", "linear_probe", "head_first", "gradual", "milestones")
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
LR_SCHEDULE_NAMES = ("cosine", "linear", "constant")
LOSS_NAMES = ("cross_entropy", "focal", "logit_adjusted", "ldam")
OPTIMIZER_NAMES = ("adamw", "sgd")


class UnfreezeConfig(Section):
    """Which layer groups train in which epoch."""

    name: Annotated[str, AfterValidator(build_name_validator(("auto", *UNFREEZE_NAMES)))] = Field(
        "auto",
        description="all, linear_probe, head_first, gradual, milestones, or "
        "package.module:function; auto: all after a probe and with random "
        "weights, else head_first",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="head_first: epochs; gradual: start, every, step; milestones: depths",
    )


class ProbeConfig(Section):
    """The head fitted to what the frozen backbone says, before anything else trains."""

    enabled: Switch = Field(
        "auto",
        description="begin with a head fitted until nothing improves, which fine-tuning must then "
        "beat; auto: with pretrained weights. off: linear_probe trains the head in epochs",
    )
    hflip: Switch = Field(
        "auto",
        description="fit to each image in a mirror, too; auto: if augment.name flips, and the "
        "probe is all there is or has fewer than 1,000 images",
    )
    num_crops: Annotated[int, Field(ge=0, le=5)] | Auto = Field(
        "auto",
        description="fit to so many parts of each image, too: its middle, then its corners; auto: "
        "1 for fewer than 1,000 images that the augmentation crops",
    )
    depth: int = Field(
        1,
        ge=1,
        description="layer groups that it trains, from the head: 1, the head alone; 2, the last "
        "group of the backbone, too, on kept maps of what lies before it",
    )
    last_stage_epochs: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="epochs over the kept maps; auto: 6, and 0 with probe.depth=1"
    )


class ImbalanceConfig(Section):
    """What is done about classes of unequal size."""

    strategy: Annotated[
        str, AfterValidator(build_name_validator(("auto", *IMBALANCE_NAMES), allow_custom=False))
    ] = Field(
        "auto",
        description="none; weighted, sqrt, effective_number, oversample, undersample, "
        "progressive, drs or abundant_first (which images are drawn); class_weights or drw (what "
        "they weigh in the loss); focal, logit_adjusted, ldam or ldam_drw (the loss itself); crt, "
        "tau_norm or post_hoc (the classifier, after training); auto: by the sizes of the classes",
    )
    sampler: Annotated[str, AfterValidator(build_name_validator(("auto", *SAMPLER_NAMES)))] = Field(
        "auto",
        description="uniform, weighted, sqrt, effective_number, oversample, undersample, "
        "progressive, deferred, abundant_first or package.module:function; auto: by strategy",
    )
    sampler_params: dict[str, Any] = Field(
        default_factory=dict,
        description="weighted: power; effective_number: beta; deferred: start_fraction; "
        "abundant_first: share, min_relative_size, power",
    )
    class_weights: Annotated[
        str,
        AfterValidator(
            build_name_validator(("auto", "none", *CLASS_WEIGHT_NAMES), allow_custom=False)
        ),
    ] = Field(
        "auto",
        description="factor of a class in the loss: none, balanced or effective_number; auto: by "
        "strategy",
    )
    class_weights_params: dict[str, Any] = Field(
        default_factory=dict, description="effective_number: beta"
    )
    class_weights_start_fraction: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto",
        description="share of the epochs after which class weights begin; auto: by strategy, and 0",
    )
    head_rebalancing: Literal["auto", "none", "crt", "tau_norm", "post_hoc"] = Field(
        "auto",
        description="what is done to the trained classifier: crt fits it again to all classes "
        "alike (Kang et al. 2020), tau_norm evens out the norms of its weights, post_hoc adjusts "
        "its answers to classes of equal size (Menon et al. 2021); auto: by strategy",
    )
    allow_double_correction: bool = Field(
        False, description="let several settings correct for the same imbalance"
    )


class OptimConfig(Section):
    """The optimizer and its learning rates."""

    name: Annotated[
        str, AfterValidator(build_name_validator(OPTIMIZER_NAMES, allow_custom=False))
    ] = Field("adamw", description="adamw, or sgd with Nesterov momentum")
    lr: Annotated[float, Field(gt=0, le=100)] | Auto = Field(
        "auto", description="peak learning rate of the head; auto: adamw 0.001, sgd 0.01"
    )
    backbone_lr_scale: Annotated[float, Field(gt=0, le=10)] | Auto = Field(
        "auto",
        description="the last backbone group learns at lr times this; auto: with adamw from the "
        "size of its weights, so that a step moves them by 2%; with sgd 0.05; random weights: 1",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        "auto",
        description="each group further from the head learns at this times the one before; "
        "auto: 0.7 a stage of the network, with random weights 1",
    )
    weight_decay: float = Field(
        0.05, ge=0, le=10, description="decoupled for adamw; spares biases and norms"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    swa_fraction: Annotated[float, Field(ge=0, le=1)] | Auto = Field(
        "auto",
        description="measure and keep the mean of the weights over this last share of all steps "
        "(Izmailov et al. 2018); 0: the weights of each epoch's end",
    )

    @model_validator(mode="after")
    def _check_momentum(self) -> "OptimConfig":
        if "momentum" in self.model_fields_set and self.name != "sgd" and self.momentum != 0.9:
            raise ValueError(
                f"momentum is a setting of optim.name=sgd and cannot apply to "
                f"optim.name={self.name}"
            )
        return self


class LrScheduleConfig(Section):
    """How the learning rates move over the steps."""

    name: Annotated[str, AfterValidator(build_name_validator(LR_SCHEDULE_NAMES))] = Field(
        "cosine", description="cosine, linear, constant or package.module:function"
    )
    warmup_fraction: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="share of all steps that the learning rate rises, again after each unfreezing",
    )
    final_factor: float = Field(
        0.01, ge=0, le=1, description="cosine and linear end at this times the peak"
    )

    @model_validator(mode="after")
    def _check_final_factor(self) -> "LrScheduleConfig":
        if self.name == "constant" and self.final_factor != 0.01:
            raise ValueError(
                "final_factor cannot apply to lr_schedule.name=constant, which has no end"
            )
        return self


class LossConfig(Section):
    """What is minimised."""

    name: Annotated[str, AfterValidator(build_name_validator(("auto", *LOSS_NAMES)))] = Field(
        "auto",
        description="cross_entropy, focal, logit_adjusted, ldam or package.module:function; auto: "
        "by imbalance.strategy",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="focal: gamma; logit_adjusted: tau; ldam: max_margin, scale",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto",
        description="share of the target spread over all classes; auto: 0.1; 0 with "
        "logit_adjusted, post_hoc, a loss that takes none, and a probe alone",
    )


class CalibrationConfig(Section):
    """How sure the finished model says it is."""

    enabled: Switch = Field(
        "auto",
        description="fit a temperature to the validation images, where it lowers the log loss of "
        "images that it was not fitted to; auto: with at least 200 of them",
    )
