"""Config sections on optimization: optimizer, learning rates and their schedule."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from finetune.config.section import Auto, Section, build_name_validator

# Names in the tables of higher layers; a contract test compares them.
LR_SCHEDULE_NAMES = ("cosine", "linear", "constant")
OPTIMIZER_NAMES = ("adamw", "sgd")


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
