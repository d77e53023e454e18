"""Rules for the settings of the optimizer: rates, weight decay, momentum and warm-up."""

from finetune.config.facts import Choice, Facts
from finetune.config.schema import Config

HEAD_LR = {
    "adamw": 1e-3, "sgd": 1e-2, "adam": 1e-3, "rmsprop": 1e-3, "adadelta": 1.0, "adagrad": 1e-2,
}  # fmt: skip
"""Learning rate of the head where none is measured.

Those of Adam, Adadelta and Adagrad are torch's own. torch's RMSprop has 0.01, whose first steps are
ten times as large, since its running mean of squares starts at 0; Keras has 0.001, too.
"""

UNMEASURED_BACKBONE_LR_SCALE = {
    "adamw": 0.1, "sgd": 0.05, "adam": 0.1, "rmsprop": 0.1, "adadelta": 0.1, "adagrad": 0.05,
}  # fmt: skip
"""Learning rate of the last backbone group divided by that of the head, where none is measured."""

WEIGHT_DECAY = {
    "adamw": Choice(0.05),
    "sgd": Choice(1e-4, "L2 penalty of sgd, as ResNet was trained with"),
    "adam": Choice(0.0, "adam divides an L2 penalty by its step sizes; adamw decouples it"),
    "rmsprop": Choice(4e-5, "L2 penalty of rmsprop, as MobileNetV2 was trained with"),
    "adadelta": Choice(0.0, "none, as published for adadelta"),
    "adagrad": Choice(0.0, "none: adagrad lowers its own step sizes"),
}
"""Weight decay by optimizer: He et al. 2016 (sgd), Sandler et al. 2018 (rmsprop), Loshchilov and
Hutter 2019 (adam), Zeiler 2012 (adadelta)."""

MOMENTUM = {"sgd": 0.9}
"""Momentum by optimizer, where it has any."""

WARMUP_FRACTION, MAX_WARMUP_FRACTION = 0.05, 0.3
"""Least and largest fraction of the steps for the warm-up of the learning rate."""

WARMUP_STEPS = 30
"""Steps for the warm-up after a linear probe, if ``MAX_WARMUP_FRACTION`` allows for them."""


def choose_optimizer_values(config: Config, facts: Facts, *, has_probe: bool) -> dict[str, Choice]:
    """Return the choices for learning rates, weight decay and momentum, by dotted key.

    Args:
        config: Config as given.
        facts: Facts of the network and the images.
        has_probe: Whether fine-tuning follows a linear probe.
    """
    momentum = _choose_momentum(config)
    has_momentum = (
        momentum.value if config.optim.momentum == "auto" else config.optim.momentum
    ) > 0
    return {
        "optim.lr": _choose_lr(config.optim.name, is_measured=has_probe),
        "optim.backbone_lr_scale": _choose_backbone_lr_scale(
            config.optim.name, facts, is_measured=has_probe
        ),
        "optim.weight_decay": WEIGHT_DECAY[config.optim.name],
        "optim.momentum": momentum,
        "optim.nesterov": Choice("on" if has_momentum and config.optim.name == "sgd" else "off"),
    }


def _choose_lr(optimizer: str, *, is_measured: bool) -> Choice:
    """Measured from a fitted head, as the rates that suit pretrained backbones differ tenfold."""
    if is_measured:
        return Choice("auto", "measured after the probe, by how far steps change the features")
    return Choice(HEAD_LR[optimizer], f"default of the head with {optimizer}")


def _choose_backbone_lr_scale(optimizer: str, facts: Facts, *, is_measured: bool) -> Choice:
    if not facts.is_pretrained:
        return Choice(1.0, "no pretrained weights")
    if is_measured:
        return Choice(1.0, "the probe provides a fitted head")
    scale = UNMEASURED_BACKBONE_LR_SCALE[optimizer]
    return Choice(scale, "pretrained weights: small backbone learning rate")


def _choose_momentum(config: Config) -> Choice:
    """The first momentum of one_cycle, else the optimizer's usual one."""
    momentum = MOMENTUM.get(config.optim.name, 0.0)
    if momentum and config.lr_schedule.cycles_momentum:
        return Choice(config.lr_schedule.first_momentum, "one_cycle begins with it")
    return Choice(momentum)


def choose_warmup(config: Config, num_steps: int, *, has_fitted_head: bool) -> Choice:
    """Longer from a fitted head, which the first steps of AdamW would spoil.

    They are the largest: with gradients of one or two batches, nearly every weight moves by the
    learning rate, and all in the direction of these few images.
    """
    if config.lr_schedule.name == "one_cycle":
        return Choice(0.0, "one_cycle begins with a warm-up of its own")
    if not has_fitted_head:
        return Choice(WARMUP_FRACTION)
    fraction = min(MAX_WARMUP_FRACTION, WARMUP_STEPS / max(1, num_steps))
    if fraction <= WARMUP_FRACTION:
        return Choice(WARMUP_FRACTION)
    return Choice(round(fraction, 3), f"{WARMUP_STEPS} steps or less to keep what the probe knows")
