"""Config sections on learning: unfreezing, probe, imbalance, optimizer, schedule and loss."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from finetune.config.section import Auto, Section, Switch, build_name_validator

# Names in the tables of higher layers; a contract test compares them.
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
    """Schedule of unfreezing: which layer groups train in which epoch."""

    name: Annotated[str, AfterValidator(build_name_validator(("auto", *UNFREEZE_NAMES)))] = Field(
        "auto",
        description="all, linear_probe, head_first, gradual, milestones, or "
        "package.module:function; auto: all after a linear probe and with random weights, else "
        "head_first",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="head_first: epochs; gradual: start, every, step; milestones: depths",
    )


class ProbeConfig(Section):
    """Linear probe: the head, fitted to features of the frozen backbone before fine-tuning."""

    enabled: Switch = Field(
        "auto",
        description="fit a linear probe first, which initializes the head and is the baseline of "
        "fine-tuning; auto: with pretrained weights. off: unfreeze.name=linear_probe trains the "
        "head in epochs",
    )
    hflip: Switch = Field(
        "auto",
        description="also fit to horizontally flipped images; auto: if augment.name flips images "
        "and fine-tuning follows on fewer than 1,000 images, or the last stage is trained alone",
    )
    num_crops: Annotated[int, Field(ge=0, le=5)] | Auto = Field(
        "auto",
        description="number of crops of each image to fit to in addition: center, then corners; "
        "auto: 1 with probe.depth of 2 or more, fewer than 1,000 images and random crops",
    )
    depth: int = Field(
        1,
        ge=1,
        description="number of layer groups to train, from the head: 1 for the head only, 2 to "
        "also train the last stage of the backbone, on cached activations of the stages before",
    )
    last_stage_epochs: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="epochs on cached activations; auto: 6, and 0 with probe.depth=1"
    )


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


class OptimConfig(Section):
    """Optimizer and learning rates."""

    name: Annotated[
        str, AfterValidator(build_name_validator(OPTIMIZER_NAMES, allow_custom=False))
    ] = Field("adamw", description="adamw, or sgd with Nesterov momentum")
    lr: Annotated[float, Field(gt=0, le=100)] | Auto = Field(
        "auto",
        description="peak learning rate of the head; auto: with adamw after a linear probe, the "
        "rate measured by feature_change, else adamw 0.001, sgd 0.01",
    )
    feature_change: float = Field(
        1.0,
        gt=0,
        le=100,
        description="change of the features by a step at the measured learning rate, extrapolated "
        "from small steps, as a fraction of their spread",
    )
    backbone_lr_scale: Annotated[float, Field(gt=0, le=10)] | Auto = Field(
        "auto",
        description="learning rate of the last backbone group divided by lr; auto: 1 with adamw "
        "after a linear probe and with random weights, else adamw 0.1, sgd 0.05",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        "auto",
        description="factor of the learning rate from each layer group to the next one away from "
        "the head; auto: 0.7 per stage of the network, with random weights 1",
    )
    weight_decay: float = Field(
        0.05,
        ge=0,
        le=10,
        description="weight decay, decoupled for adamw; none for biases and norms",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    swa_fraction: Annotated[float, Field(ge=0, le=1)] | Auto = Field(
        "auto",
        description="evaluate and save the mean of the weights over this last fraction of all "
        "steps (SWA, Izmailov et al. 2018); auto and 0: the weights at the end of each epoch",
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
    """Schedule of the learning rates."""

    name: Annotated[str, AfterValidator(build_name_validator(LR_SCHEDULE_NAMES))] = Field(
        "cosine", description="cosine, linear, constant or package.module:function"
    )
    warmup_fraction: Annotated[float, Field(ge=0, le=0.5)] | Auto = Field(
        "auto",
        description="fraction of all steps for a linear warm-up, repeated after each unfreezing; "
        "auto: 0.05, after a linear probe enough for 30 steps, from 0.05 to 0.3",
    )
    final_factor: float = Field(
        0.01,
        ge=0,
        le=1,
        description="final learning rate of cosine and linear, relative to the peak",
    )

    @model_validator(mode="after")
    def _check_final_factor(self) -> "LrScheduleConfig":
        if self.name == "constant" and self.final_factor != 0.01:
            raise ValueError("final_factor cannot apply to lr_schedule.name=constant")
        return self


class LossConfig(Section):
    """Loss function."""

    name: Annotated[str, AfterValidator(build_name_validator(("auto", *LOSS_NAMES)))] = Field(
        "auto",
        description="cross_entropy, focal, logit_adjusted, ldam or package.module:function; "
        "auto: by imbalance.strategy",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="focal: gamma; logit_adjusted: tau; ldam: max_margin, scale",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto",
        description="fraction of the target that is spread over all classes; auto: 0.1, and 0 "
        "with logit_adjusted, post_hoc at a given strength, a loss without label smoothing or a "
        "linear probe only",
    )


class CalibrationConfig(Section):
    """Calibration of the probabilities of the best model."""

    enabled: Switch = Field(
        "auto",
        description="fit a temperature to the validation images, if it lowers the log loss in "
        "cross-validation; auto: with at least 30 of them",
    )
