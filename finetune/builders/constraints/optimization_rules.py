"""Constraints of the optimizer, the learning-rate schedule, the loss and penalties of weights."""

from finetune.builders.constraints.constraint import Constraint, is_sharded
from finetune.builders.resolve import RunSpec
from finetune.config.resolved import ResolvedConfig
from finetune.losses import SCORE_LOSSES


def _stops_before_reduction(config: ResolvedConfig, _: RunSpec) -> bool:
    """Return whether early stopping ends the run before a plateau lowers the learning rate."""
    patience = config.trainer.early_stopping_patience
    if config.lr_schedule.name != "plateau" or patience is None:
        return False
    accepted = config.lr_schedule.params.get("patience", 2)
    if not isinstance(accepted, int):
        return False  # reported where the schedule is built
    # early stopping counts from the probe, the plateau from the first epoch
    return patience <= accepted + (2 if config.probe.enabled == "on" else 1)


OPTIMIZATION = (
    Constraint(
        ("lr_schedule.warmup_fraction", "lr_schedule.name"),
        lambda c, _: c.lr_schedule.name == "one_cycle" and c.lr_schedule.warmup_fraction > 0,
        "it begins with a warm-up of its own, of lr_schedule.params.pct_start of the steps. Leave "
        "lr_schedule.warmup_fraction out.",
    ),
    Constraint(
        ("optim.momentum", "lr_schedule.name"),
        lambda c, _: (
            c.optim.name in ("sgd", "rmsprop")
            and c.lr_schedule.cycles_momentum
            and c.optim.momentum not in (0, c.lr_schedule.first_momentum)
        ),
        "it sets the momentum of each step, from {config.lr_schedule.first_momentum:g} on. Set "
        "lr_schedule.params={{cycle_momentum: false}}, or leave optim.momentum out.",
    ),
    Constraint(
        ("optim.params", "lr_schedule.name"),
        lambda c, _: c.lr_schedule.cycles_momentum and "betas" in c.optim.params,
        "it sets the first of the betas in each step. Set "
        "lr_schedule.params={{cycle_momentum: false}}, or leave betas out.",
    ),
    Constraint(
        ("optim.params", "optim.nesterov"),
        lambda c, _: c.optim.nesterov == "on" and bool(c.optim.params.get("dampening")),
        "Nesterov momentum has no dampening. Set optim.nesterov=off, or leave dampening out.",
    ),
    Constraint(
        ("optim.params", "optim.momentum"),
        lambda c, _: (
            c.optim.name == "sgd"
            and c.optim.momentum == 0
            and bool(c.optim.params.get("dampening"))
        ),
        "dampening is a factor of momentum. Set optim.momentum=0.9 optim.nesterov=off, or leave "
        "dampening out.",
    ),
    Constraint(
        ("trainer.early_stopping_patience", "lr_schedule.name"),
        _stops_before_reduction,
        "training would stop before the learning rate is lowered. Use a patience of at least two "
        "epochs more than lr_schedule.params.patience, three after a linear probe, or leave one of "
        "them out.",
    ),
    Constraint(
        ("lr_schedule.name", "probe.depth"),
        lambda c, _: (
            c.lr_schedule.name == "plateau" and c.probe.enabled == "on" and c.probe.depth > 1
        ),
        "the epochs on cached activations need a schedule that is known beforehand. Choose another "
        "one, or leave probe.depth out.",
    ),
    Constraint(
        ("optim.head_l1", "probe.depth"),
        lambda c, _: c.optim.head_l1 > 0 and c.probe.enabled == "on" and c.probe.depth > 1,
        "the epochs on cached activations have no such penalty. Leave one of them out.",
    ),
    Constraint(
        ("imbalance.head_rebalancing", "loss.name"),
        lambda c, _: c.imbalance.head_rebalancing == "post_hoc" and c.loss.name in SCORE_LOSSES,
        "its logits are scores and assume no class prior that could be adjusted. Set "
        "loss.name=cross_entropy, or imbalance.strategy=class_weights.",
    ),
    Constraint(
        ("imbalance.head_rebalancing", "optim.max_norm"),
        lambda c, _: (
            c.imbalance.head_rebalancing in ("crt", "tau_norm")
            and bool({"head", "all"} & c.optim.max_norm.keys())
        ),
        "it fits or scales the head again after training, without this constraint. Leave one of "
        "them out, or name other layer groups.",
    ),
    Constraint(
        ("trainer.strategy", "optim.head_l1"),
        lambda c, _: is_sharded(c) and c.optim.head_l1 > 0,
        "no process holds all weights of the head. Set trainer.strategy=ddp.",
    ),
    Constraint(
        ("trainer.strategy", "optim.max_norm"),
        lambda c, _: is_sharded(c) and bool(c.optim.max_norm),
        "no process holds all weights of a unit, whose norm is limited. Set trainer.strategy=ddp.",
    ),
)
