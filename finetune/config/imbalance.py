"""What is done about classes of unequal size: one table, and no correction made twice."""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ImbalanceStrategy:
    """What a strategy does, and where.

    Attributes:
        sampler: A name in ``SAMPLERS``.
        loss: A name in ``LOSSES``.
        class_weights: "none", or a name in ``CLASS_WEIGHTS``.
        class_weights_start_fraction: Share of the epochs after which they begin.
        head_rebalancing: What is done to the classifier after training: "none", "crt", "tau_norm" or
            "post_hoc".
    """

    sampler: str = "uniform"
    loss: str = "cross_entropy"
    class_weights: str = "none"
    class_weights_start_fraction: float = 0.0
    head_rebalancing: str = "none"


DEFERRED_START_FRACTION = 0.8
"""Cao et al. 2019 begin after 160 of 200 epochs."""

IMBALANCE_STRATEGIES: Mapping[str, ImbalanceStrategy] = {
    "none": ImbalanceStrategy(),
    "weighted": ImbalanceStrategy(sampler="weighted"),
    "sqrt": ImbalanceStrategy(sampler="sqrt"),
    "effective_number": ImbalanceStrategy(sampler="effective_number"),
    "oversample": ImbalanceStrategy(sampler="oversample"),
    "undersample": ImbalanceStrategy(sampler="undersample"),
    "progressive": ImbalanceStrategy(sampler="progressive"),
    "drs": ImbalanceStrategy(sampler="deferred"),
    "drw": ImbalanceStrategy(
        class_weights="effective_number", class_weights_start_fraction=DEFERRED_START_FRACTION
    ),
    "abundant_first": ImbalanceStrategy(sampler="abundant_first"),
    "class_weights": ImbalanceStrategy(class_weights="balanced"),
    "focal": ImbalanceStrategy(loss="focal"),
    "logit_adjusted": ImbalanceStrategy(loss="logit_adjusted"),
    "ldam": ImbalanceStrategy(loss="ldam"),
    "ldam_drw": ImbalanceStrategy(
        loss="ldam",
        class_weights="effective_number",
        class_weights_start_fraction=DEFERRED_START_FRACTION,
    ),
    "crt": ImbalanceStrategy(head_rebalancing="crt"),
    "tau_norm": ImbalanceStrategy(head_rebalancing="tau_norm"),
    "post_hoc": ImbalanceStrategy(head_rebalancing="post_hoc"),
}


def apply_imbalance_strategy(config: Config) -> Config:
    """Return the config with the strategy's sampler, loss and class weights written out.

    Raises:
        ConfigError: Two settings contradict each other or correct for the same imbalance.
    """
    asked = config.imbalance
    assert asked.strategy != "auto", "auto is decided before"
    strategy = IMBALANCE_STRATEGIES[asked.strategy]
    loss = strategy.loss if config.loss.name == "auto" else config.loss.name
    if strategy.loss not in ("cross_entropy", loss):
        raise ConfigError(
            f"loss.name={loss} contradicts imbalance.strategy={asked.strategy}, whose loss is "
            f"{strategy.loss}. Leave one of them out."
        )
    _check_strategy_overrides(config, strategy)
    start = asked.class_weights_start_fraction
    config = replace_values(
        config,
        {
            "imbalance.sampler": strategy.sampler if asked.sampler == "auto" else asked.sampler,
            "imbalance.class_weights": (
                strategy.class_weights if asked.class_weights == "auto" else asked.class_weights
            ),
            "imbalance.class_weights_start_fraction": (
                strategy.class_weights_start_fraction if start == "auto" else start
            ),
            "imbalance.head_rebalancing": strategy.head_rebalancing
            if asked.head_rebalancing == "auto"
            else asked.head_rebalancing,
            "loss.name": loss,
        },
    )
    _check_unused_options(config)
    if not asked.allow_double_correction:
        _check_double_correction(config)
    return config


def check_imbalance(config: Config) -> None:
    """Refuse before any work what ``apply_imbalance_strategy`` will refuse once "auto" is decided.

    Where something else is asked for "auto" is "none", and where nothing is it contradicts nothing.

    Raises:
        ConfigError: Two settings contradict each other or correct for the same imbalance.
    """
    asked = config.imbalance.strategy
    apply_imbalance_strategy(
        config if asked != "auto" else replace_values(config, {"imbalance.strategy": "none"})
    )


def _check_strategy_overrides(config: Config, strategy: ImbalanceStrategy) -> None:
    """Refuse a part that takes away, or replaces, what the strategy is.

    Class weights of another kind are still class weights, and begin when the strategy's do.
    """
    asked, plain = config.imbalance, ImbalanceStrategy()
    loses_weights = asked.class_weights == "none"
    for key, mine, is_other in (
        ("sampler", strategy.sampler, asked.sampler not in ("auto", strategy.sampler)),
        ("class_weights", strategy.class_weights, loses_weights),
        (
            "head_rebalancing",
            strategy.head_rebalancing,
            asked.head_rebalancing not in ("auto", strategy.head_rebalancing),
        ),
    ):
        if is_other and mine != getattr(plain, key):
            raise ConfigError(
                f"imbalance.{key}={getattr(asked, key)} contradicts "
                f"imbalance.strategy={asked.strategy}, whose {key} is {mine}. Leave one of them "
                f"out."
            )


def _check_unused_options(config: Config) -> None:
    """Refuse details of class weights where there are none."""
    chosen = config.imbalance
    if chosen.class_weights != "none":
        return
    for key, idle in (
        ("class_weights_start_fraction", chosen.class_weights_start_fraction != 0),
        ("class_weights_params", bool(chosen.class_weights_params)),
    ):
        if idle:
            raise ConfigError(
                f"imbalance.{key}={getattr(chosen, key)} cannot apply to "
                f"imbalance.class_weights=none. Leave it out, or name class weights."
            )


def _check_double_correction(config: Config) -> None:
    """Refuse two corrections; one of the head that begins anew, or takes up the rest, is none."""
    chosen = config.imbalance
    corrections = []
    if chosen.sampler != "uniform":
        corrections.append(f"imbalance.sampler={chosen.sampler} draws rare classes more often")
    if chosen.class_weights != "none":
        corrections.append(
            f"imbalance.class_weights={chosen.class_weights} weighs them more in the loss"
        )
    if config.loss.name == "logit_adjusted":
        corrections.append(
            "loss.name=logit_adjusted takes the size of the classes out of the logits"
        )
    if chosen.head_rebalancing == "tau_norm":
        corrections.append(
            "imbalance.head_rebalancing=tau_norm evens out the norms of their weights"
        )
    if len(corrections) > 1:
        raise ConfigError(
            f"{', and '.join(corrections)}: together they correct more than once for the same "
            f"imbalance (imbalance.strategy={chosen.strategy}). Keep one, or set "
            f"imbalance.allow_double_correction=true if that is what you want."
        )
