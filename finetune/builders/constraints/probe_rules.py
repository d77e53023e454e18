"""Constraints of the linear probe, and of runs that are nothing else."""

from finetune.builders.constraints.constraint import (
    Constraint,
    Predicate,
    is_sharded,
)
from finetune.builders.criterion import select_probe_loss
from finetune.config.auto import get_config_value
from finetune.config.load import diff_from_defaults
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import Config
from finetune.config.sections.optim import LrScheduleConfig, OptimConfig
from finetune.units import format_value


def _require_probe(key: str, default: int | str) -> Constraint:
    """Return the constraint that a setting of the linear probe needs one."""
    return Constraint(
        (key, "probe.enabled"),
        lambda c, _: c.probe.enabled == "off" and get_config_value(c, key) != default,
        "it is a setting of the linear probe. Leave one of them out.",
    )


def _forbid_for_probe_only(key: str, is_set: Predicate) -> Constraint:
    """Return the constraint that a setting needs epochs, which a linear probe only has not."""
    return Constraint(
        (key, "unfreeze.name"),
        lambda c, run: c.is_probe_only and is_set(c, run),
        "the head is fitted by logistic regression until it converges, without epochs. Leave it "
        "out, or set probe.enabled=off to train the head in epochs.",
    )


PROBE = (
    _require_probe("probe.num_crops", 0),
    _require_probe("probe.depth", 1),
    _require_probe("probe.last_stage_epochs", 0),
    _require_probe("probe.stages", "off"),
    Constraint(
        ("imbalance.head_rebalancing", "probe.enabled"),
        lambda c, _: (
            c.probe.enabled == "off" and c.imbalance.head_rebalancing in ("crt", "tau_norm")
        ),
        "it extracts features of all images with the trained network, as a linear probe does. Use "
        "imbalance.strategy=post_hoc, which needs no images.",
    ),
    Constraint(
        ("probe.last_stage_epochs", "probe.depth"),
        lambda c, _: (
            c.probe.enabled == "on" and (c.probe.depth == 1) != (c.probe.last_stage_epochs == 0)
        ),
        "a depth of 2 or more needs epochs on cached activations, and a depth of 1 has none. Leave "
        "probe.last_stage_epochs out.",
    ),
    Constraint(
        ("probe.enabled", "model.head"),
        lambda c, _: c.probe.enabled == "on" and c.model.head != "linear",
        "a probe is fitted as one linear layer, and hidden layers would start from random weights "
        "anyway. Leave probe.enabled out, or set model.head=linear.",
    ),
    Constraint(
        ("model.head_init", "probe.enabled"),
        lambda c, _: c.probe.enabled == "on" and c.model.head_init != "zero",
        "the probe fits the head, whose first weights it replaces. Leave one of them out.",
    ),
    Constraint(
        ("probe.enabled", "model.backbone"),
        lambda c, run: c.probe.enabled == "on" and not run.facts.has_linear_head,
        "its classifier is not one linear layer. Leave probe.enabled out.",
    ),
    Constraint(
        ("probe.enabled", "trainer.strategy"),
        lambda c, _: c.probe.enabled == "on" and is_sharded(c),
        "a linear probe needs the whole network in one process. Set probe.enabled=off.",
    ),
    Constraint(
        ("probe.depth", "model.backbone"),
        lambda c, run: c.probe.enabled == "on" and c.probe.depth >= max(2, run.facts.num_groups),
        "the network has {run.facts.num_groups} layer groups, of which at least one must stay "
        "frozen. Lower probe.depth, or use --unfreeze all.",
    ),
)

PROBE_ONLY = (
    _forbid_for_probe_only("trainer.epochs", lambda c, _: c.trainer.epochs != 1),
    _forbid_for_probe_only("loss.name", lambda c, _: c.loss.name != select_probe_loss(c.loss.name)),
    _forbid_for_probe_only("loss.label_smoothing", lambda c, _: c.loss.label_smoothing > 0),
    _forbid_for_probe_only(
        "augment.rare_class_preset", lambda c, _: c.augment.rare_class_preset != "off"
    ),
    _forbid_for_probe_only("augment.mixup", lambda c, _: c.augment.mixup > 0),
    _forbid_for_probe_only("augment.cutmix", lambda c, _: c.augment.cutmix > 0),
    _forbid_for_probe_only("optim.swa_fraction", lambda c, _: c.optim.swa_fraction > 0),
    _forbid_for_probe_only("optim.head_l1", lambda c, _: c.optim.head_l1 > 0),
    _forbid_for_probe_only(
        "optim.max_norm", lambda c, _: c.probe.depth == 1 and bool(c.optim.max_norm)
    ),
    _forbid_for_probe_only(
        "data.train_image_size",
        lambda c, run: set(c.data.train_image_size) != {run.facts.image_size},
    ),
)

EPOCH_SETTINGS = (
    *(
        f"optim.{key}"
        for key in OptimConfig.model_fields
        if key not in ("swa_fraction", "max_norm")
    ),
    *(f"lr_schedule.{key}" for key in LrScheduleConfig.model_fields),
    "loss.params",
    "model.drop_rate",
    "trainer.early_stopping_patience",
    "trainer.gradient_clip_val",
)
"""Settings that only training in epochs reads."""


def check_probe_settings(given: Config, config: ResolvedConfig) -> None:
    """Check that no setting of epochs is given for a new run whose head alone is fitted.

    Resumed runs are not checked: older releases accepted such settings.

    Args:
        given: Config as given.
        config: The same, resolved.

    Raises:
        ConfigError: There is one; the message names it.
    """
    if not config.is_probe_only or config.probe.depth > 1:
        return
    values = diff_from_defaults(given)
    for key in EPOCH_SETTINGS:
        is_adjustment = key == "loss.params" and config.loss.name == "logit_adjusted"
        if key in values and values[key] != "auto" and not is_adjustment:
            rule = _forbid_for_probe_only(key, lambda *_: True)
            raise rule.error(
                f"{key}={format_value(values[key])} cannot apply to unfreeze.name=linear_probe: "
                f"{rule.reason}"
            )
