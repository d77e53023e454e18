"""Strategies for imbalanced classes, and the rule that corrects an imbalance only once."""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune.config.facts import Choice, Facts
from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.errors import ConfigError

POST_HOC_MIN_RATIO = 5.0
"""Imbalance ratio from which probabilities may be adjusted towards classes of equal size."""


@dataclass(frozen=True, slots=True)
class ImbalanceStrategy:
    """Parts of a strategy.

    Attributes:
        sampler: Name in ``SAMPLERS``.
        loss: Name in ``LOSSES``.
        class_weights: "none", or name in ``CLASS_WEIGHTS``.
        class_weights_start_fraction: Fraction of the epochs after which class weights apply.
        head_rebalancing: Rebalancing of the classifier after training: "none", "crt", "tau_norm"
            or "post_hoc".
    """

    sampler: str = "uniform"
    loss: str = "cross_entropy"
    class_weights: str = "none"
    class_weights_start_fraction: float = 0.0
    head_rebalancing: str = "none"


DEFERRED_START_FRACTION = 0.8
"""Fraction of the epochs of Cao et al. 2019, who start after 160 of 200."""

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
    """Return the config with the sampler, loss, class weights and head of its strategy.

    Raises:
        ConfigError: Two settings contradict each other or correct for the same imbalance.
    """
    imbalance = config.imbalance
    assert imbalance.strategy != "auto", "resolved by choose_auto_values"
    strategy = IMBALANCE_STRATEGIES[imbalance.strategy]
    loss = strategy.loss if config.loss.name == "auto" else config.loss.name
    if strategy.loss not in ("cross_entropy", loss):
        raise ConfigError(
            f"loss.name={loss} contradicts imbalance.strategy={imbalance.strategy}, whose loss is "
            f"{strategy.loss}. Leave one of them out."
        )
    _check_strategy_overrides(config, strategy)
    parts = {
        f"imbalance.{key}": getattr(strategy, key)
        for key in ("sampler", "class_weights", "class_weights_start_fraction", "head_rebalancing")
        if getattr(imbalance, key) == "auto"
    }
    config = replace_values(config, {**parts, "loss.name": loss})
    _check_unused_options(config)
    if not imbalance.allow_double_correction:
        _check_double_correction(config)
    return config


def check_imbalance(config: Config) -> None:
    """Check before any work what ``apply_imbalance_strategy`` checks after "auto" is resolved.

    A strategy of "auto" becomes "none" if other imbalance keys are set, and conflicts with nothing
    if none is. Whether it becomes "post_hoc", to which a strength applies, is not known before the
    images are counted.

    Raises:
        ConfigError: Two settings contradict each other or correct for the same imbalance.
    """
    if config.imbalance.strategy == "auto":
        config = replace_values(
            config, {"imbalance.strategy": "none", "imbalance.post_hoc_strength": "auto"}
        )
    apply_imbalance_strategy(config)


def _check_strategy_overrides(config: Config, strategy: ImbalanceStrategy) -> None:
    """Check that no key removes or replaces a part that defines the strategy.

    Class weights of another kind are accepted; they apply from the same epoch as the strategy's.
    """
    imbalance, default = config.imbalance, ImbalanceStrategy()
    is_conflict = {
        "sampler": imbalance.sampler not in ("auto", strategy.sampler),
        "class_weights": imbalance.class_weights == "none",
        "head_rebalancing": imbalance.head_rebalancing not in ("auto", strategy.head_rebalancing),
    }
    for key in is_conflict:
        part = getattr(strategy, key)
        if is_conflict[key] and part != getattr(default, key):
            raise ConfigError(
                f"imbalance.{key}={getattr(imbalance, key)} contradicts "
                f"imbalance.strategy={imbalance.strategy}, whose {key} is {part}. Leave one of "
                f"them out."
            )


def _check_unused_options(config: Config) -> None:
    """Check that options of class weights or of post_hoc are set only with them.

    Resolved configs have a strength of 1 with every strategy.
    """
    chosen = config.imbalance
    strength = chosen.post_hoc_strength
    if chosen.head_rebalancing != "post_hoc" and strength not in ("auto", 1.0):
        raise ConfigError(
            f"imbalance.post_hoc_strength={strength} cannot apply to "
            f"imbalance.head_rebalancing={chosen.head_rebalancing}. Leave it out, or set "
            f"imbalance.strategy=post_hoc."
        )
    if chosen.class_weights != "none":
        return
    for key, is_set in (
        ("class_weights_start_fraction", chosen.class_weights_start_fraction != 0),
        ("class_weights_params", bool(chosen.class_weights_params)),
    ):
        if is_set:
            raise ConfigError(
                f"imbalance.{key}={getattr(chosen, key)} cannot apply to "
                f"imbalance.class_weights=none. Leave it out, or set imbalance.class_weights."
            )


def _check_double_correction(config: Config) -> None:
    """Check that there is one correction; crt and post_hoc replace others instead of adding."""
    chosen = config.imbalance
    corrections = []
    if chosen.sampler != "uniform":
        corrections.append(f"imbalance.sampler={chosen.sampler} draws rare classes more often")
    if chosen.class_weights != "none":
        corrections.append(
            f"imbalance.class_weights={chosen.class_weights} increases their weight in the loss"
        )
    if config.loss.name == "logit_adjusted":
        corrections.append("loss.name=logit_adjusted removes the class prior from the logits")
    if chosen.head_rebalancing == "tau_norm":
        corrections.append(
            "imbalance.head_rebalancing=tau_norm equalizes the norms of the class weights"
        )
    if len(corrections) > 1:
        raise ConfigError(
            f"{', and '.join(corrections)}: together they correct the same imbalance twice "
            f"(imbalance.strategy={chosen.strategy}). Keep one, or set "
            f"imbalance.allow_double_correction=true if that is intended."
        )


def choose_imbalance_strategy(config: Config, facts: Facts) -> Choice:
    """Return the strategy for the class counts; other imbalance keys exclude one.

    Measured by ``scripts/benchmarks/imbalance.py``.
    """
    chosen = config.imbalance
    for key in ("sampler", "class_weights", "head_rebalancing"):
        if getattr(chosen, key) != "auto":
            return Choice("none", f"imbalance.{key} is given")
    if facts.is_multi_label:
        return Choice("none", "multi-label: a threshold for each label is chosen after training")
    ratio = f"imbalance ratio {facts.imbalance_ratio:.3g}"
    if facts.imbalance_ratio < POST_HOC_MIN_RATIO:
        return Choice("none", ratio)
    if config.loss.name != "auto":
        return Choice("none", f"{ratio}, but loss.name is given")
    return Choice("post_hoc", ratio)


def choose_post_hoc_strength(config: Config, facts: Facts) -> Choice:
    """Return the strength of ``post_hoc``: in full if it was requested.

    Where ``post_hoc`` itself is an automatic choice, its strength is chosen on held-out images.
    """
    is_automatic = config.imbalance.strategy == "auto"
    if is_automatic and choose_imbalance_strategy(config, facts).value == "post_hoc":
        return Choice("held_out", "chosen after training; 0 where none is clearly better")
    return Choice(1.0)
