"""Config sections on optimization: optimizer, learning rates and their schedule."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from finetune.config.section import Auto, Section, Switch, build_name_validator
from finetune.units import format_yaml_value

# Names in the tables of higher layers; a contract test compares them.
LR_SCHEDULE_NAMES = (
    "cosine", "linear", "constant", "step", "exponential", "inverse_time", "one_cycle", "plateau",
)  # fmt: skip
OPTIMIZER_NAMES = ("adamw", "sgd", "adam", "rmsprop", "adadelta", "adagrad")

MOMENTUM_OPTIMIZERS = ("sgd", "rmsprop")
"""Optimizers with ``optim.momentum``; Adam and AdamW have ``betas`` in ``optim.params``."""

FINAL_FACTOR_SCHEDULES = ("cosine", "linear", "exponential")
"""Schedules with ``lr_schedule.final_factor``, besides custom ones that take it."""

_FINAL_FACTOR = 0.01
_MAX_MOMENTUM = 0.95


def _check_mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        found = format_yaml_value(value)
        raise ValueError(f"found {found}, expected layer groups and their norms, as {{head: 3}}")
    return value


class OptimConfig(Section):
    """Optimizer, learning rates and penalties of the weights."""

    name: Annotated[
        str, AfterValidator(build_name_validator(OPTIMIZER_NAMES, allow_custom=False))
    ] = Field("adamw", description=f"{', '.join(OPTIMIZER_NAMES[:-1])} or {OPTIMIZER_NAMES[-1]}")
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="further arguments of torch's class: adamw, adam: betas, eps, amsgrad; sgd: "
        "dampening; rmsprop: alpha, eps, centered; adadelta: rho, eps; adagrad: lr_decay, eps, "
        "initial_accumulator_value",
    )
    lr: Annotated[float, Field(gt=0, le=100)] | Auto = Field(
        "auto",
        description="peak learning rate of the head; auto: after a linear probe, the rate measured "
        "by feature_change, else adamw, adam and rmsprop 0.001, sgd and adagrad 0.01, adadelta 1",
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
        description="learning rate of the last backbone group divided by lr; auto: 1 where lr is "
        "measured and with random weights, else 0.1, sgd and adagrad 0.05",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        "auto",
        description="factor of the learning rate from each layer group to the next one away from "
        "the head; auto: 0.7 per stage of the network, with random weights 1",
    )
    weight_decay: Annotated[float, Field(ge=0, le=10)] | Auto = Field(
        "auto",
        description="weight decay, decoupled for adamw and an L2 penalty for the others; none for "
        "biases and norms; auto: adamw 0.05, sgd 0.0001, rmsprop 0.00004, else 0",
    )
    head_weight_decay: Annotated[float, Field(ge=0, le=10)] | None = Field(
        None, description="weight decay of the head's weights; null: weight_decay"
    )
    head_l1: float = Field(
        0.0,
        ge=0,
        le=10,
        description="L1 penalty: factor of the sum of the absolute values of the head's weights, "
        "added to the loss",
    )
    max_norm: Annotated[
        dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_check_mapping)
    ] = Field(
        default_factory=dict,
        description="max-norm constraint: layer group, or all, to the largest norm of a unit's "
        "incoming weights, to which they are scaled after each step, such as {head: 3}",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        "auto",
        description="momentum of sgd and rmsprop; auto: sgd 0.9, rmsprop 0; with "
        "lr_schedule.name=one_cycle its first value",
    )
    nesterov: Switch = Field(
        "auto", description="Nesterov momentum of sgd; auto: on with momentum, else off"
    )
    swa_fraction: Annotated[float, Field(ge=0, le=1)] | Auto = Field(
        "auto",
        description="evaluate and save the mean of the weights over this last fraction of all "
        "steps (SWA, Izmailov et al. 2018); auto and 0: the weights at the end of each epoch",
    )

    @model_validator(mode="after")
    def _check_momentum(self) -> "OptimConfig":
        momentum = 0.0 if self.momentum == "auto" else self.momentum
        # runs of older releases contain 0.9 whatever their optimizer
        is_old_default = self.name == "adamw" and momentum == 0.9
        if self.name not in MOMENTUM_OPTIMIZERS and momentum and not is_old_default:
            remedy = (
                "Set optim.params={betas: [0.9, 0.999]} instead"
                if self.name in ("adam", "adamw")
                else "Leave it out"
            )
            raise ValueError(
                f"momentum is a setting of optim.name={' and '.join(MOMENTUM_OPTIMIZERS)} and "
                f"cannot apply to optim.name={self.name}. {remedy}."
            )
        if self.nesterov == "on" and self.name != "sgd":
            raise ValueError(
                f"nesterov is a setting of optim.name=sgd and cannot apply to "
                f"optim.name={self.name}. Leave it out."
            )
        if self.nesterov == "on" and self.momentum == 0:
            raise ValueError(
                "nesterov=on needs a momentum and cannot apply to optim.momentum=0. Leave one of "
                "them out."
            )
        return self


class LrScheduleConfig(Section):
    """Schedule of the learning rates."""

    name: Annotated[str, AfterValidator(build_name_validator(LR_SCHEDULE_NAMES))] = Field(
        "cosine",
        description=f"{', '.join(LR_SCHEDULE_NAMES)} or package.module:function",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="step: every (epochs; a third of the run), gamma; exponential: gamma (of an "
        "epoch); inverse_time: decay; one_cycle: pct_start, div_factor, final_div_factor, "
        "anneal_strategy, cycle_momentum, base_momentum, max_momentum; plateau: factor, patience, "
        "threshold, cooldown, min_factor",
    )
    warmup_fraction: Annotated[float, Field(ge=0, le=0.5)] | Auto = Field(
        "auto",
        description="fraction of all steps for a linear warm-up, repeated after each unfreezing "
        "within 0.3 of the steps of a short phase; "
        "auto: 0.05, after a linear probe enough for 30 steps, from 0.05 to 0.3; one_cycle: 0",
    )
    final_factor: float = Field(
        _FINAL_FACTOR,
        ge=0,
        le=1,
        description="final learning rate of cosine, linear and exponential, relative to the peak",
    )

    @model_validator(mode="after")
    def _check_final_factor(self) -> "LrScheduleConfig":
        is_own = self.name in FINAL_FACTOR_SCHEDULES or ":" in self.name
        if not is_own and self.final_factor != _FINAL_FACTOR:
            raise ValueError(f"final_factor cannot apply to lr_schedule.name={self.name}")
        if self.name == "exponential":
            if "gamma" in self.params and self.final_factor != _FINAL_FACTOR:
                raise ValueError(
                    "final_factor cannot apply to lr_schedule.params.gamma, which determines the "
                    "end. Leave one of them out"
                )
            if self.final_factor == 0:
                raise ValueError(
                    "final_factor=0 cannot apply to lr_schedule.name=exponential, which never "
                    "reaches 0"
                )
        return self

    @property
    def cycles_momentum(self) -> bool:
        """Whether the schedule sets the momentum of an optimizer that has one."""
        return self.name == "one_cycle" and bool(self.params.get("cycle_momentum", True))

    @property
    def first_momentum(self) -> float:
        """First momentum of ``one_cycle``."""
        momentum = self.params.get("max_momentum", _MAX_MOMENTUM)
        # a wrong value is reported where the schedule is built
        is_valid = isinstance(momentum, float | int) and 0 <= momentum < 1
        return float(momentum) if is_valid else _MAX_MOMENTUM
