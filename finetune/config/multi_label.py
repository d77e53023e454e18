"""Settings that apply to multi-label images, of which each has any number of labels, or do not.

Each label is a yes or no of its own, so that samplers, class weights and losses of classes that
exclude each other have no meaning for them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.config.auto import get_config_value
from finetune.config.facts import Facts
from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.errors import ConfigError

LABEL_LOSSES = ("bce", "asymmetric")
"""Losses of multi-label images; a contract test compares them with the table."""

LABEL_MONITORS = (
    "mean_average_precision",
    "micro_average_precision",
    "micro_f1",
    "subset_accuracy",
)
"""Metrics of multi-label images alone."""

CLASS_MONITORS = ("accuracy", "balanced_accuracy")
"""Metrics of images of one class alone."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """Values of a setting that apply to multi-label images.

    Attributes:
        applies: Returns whether a value does.
        remedy: What to do instead, as a sentence.
    """

    applies: Callable[[Any], bool]
    remedy: str


def _is_one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


_WEIGHTS_REMEDY = (
    "Set imbalance.strategy=class_weights, which weights the images with a label by the number of "
    "those without it, or leave it out."
)

_MULTI_LABEL_RULES: Mapping[str, _Rule] = {
    "imbalance.strategy": _Rule(_is_one_of("none", "class_weights"), _WEIGHTS_REMEDY),
    "imbalance.sampler": _Rule(
        _is_one_of("auto", "uniform"),
        f"A sampler draws by the one class of an image. {_WEIGHTS_REMEDY}",
    ),
    "imbalance.class_weights": _Rule(_is_one_of("auto", "none", "balanced"), _WEIGHTS_REMEDY),
    "imbalance.class_weights_params": _Rule(lambda value: not value, "Leave it out."),
    "imbalance.head_rebalancing": _Rule(
        _is_one_of("auto", "none"),
        "The threshold of each label is chosen on validation images instead. Leave it out.",
    ),
    "loss.name": _Rule(
        lambda name: name in ("auto", *LABEL_LOSSES) or ":" in name,
        "Its classes exclude each other. Set loss.name to bce or asymmetric, or leave it out.",
    ),
    "trainer.monitor": _Rule(
        lambda name: name not in CLASS_MONITORS,
        "Set mean_average_precision, macro_f1, micro_f1, subset_accuracy or loss.",
    ),
    "checkpoint.monitor": _Rule(
        lambda name: name not in CLASS_MONITORS,
        "Set calibrated_loss, mean_average_precision, macro_f1, micro_f1 or loss.",
    ),
    "augment.rare_class_preset": _Rule(
        _is_one_of("off"), "An image may have rare and frequent labels. Leave it out."
    ),
    "probe.depth": _Rule(_is_one_of(1), "Fine-tune the last stage instead: leave it out."),
    "probe.stages": _Rule(
        lambda value: value != "on",
        "Heads on earlier stages are compared by the one class of an image. Leave it out.",
    ),
}


def resolve_task(config: Config, facts: Facts) -> Config:
    """Return a config with the loss of its images, after checking what applies to them.

    Args:
        config: Config without "auto" in the settings that follow from facts.
        facts: ``is_multi_label`` says which images they are.

    Raises:
        ConfigError: A setting is for images of another kind; the message names it and a remedy.
    """
    if not facts.is_multi_label:
        _check_single_label(config)
        return config
    for key, rule in _MULTI_LABEL_RULES.items():
        value = get_config_value(config, key)
        if not rule.applies(value):
            raise ConfigError(
                f"{key}={value} cannot apply to multi-label images, which have any number of "
                f"labels. {rule.remedy}"
            )
    imbalance = config.imbalance
    has_weights = imbalance.strategy == "class_weights" or imbalance.class_weights == "balanced"
    if has_weights and config.loss.name == "asymmetric":
        raise ConfigError(
            "imbalance.class_weights=balanced cannot apply to loss.name=asymmetric, which corrects "
            "the same imbalance of images with and without a label. Leave one of them out."
        )
    if config.loss.name == "auto":
        return replace_values(config, {"loss.name": "bce"})
    return config


def _check_single_label(config: Config) -> None:
    """Check that no setting of multi-label images is set.

    Raises:
        ConfigError: One is.
    """
    if config.loss.name in LABEL_LOSSES:
        raise ConfigError(
            f"loss.name={config.loss.name} cannot apply to images of one class each: it is for "
            f"multi-label images, from a CSV of path,labels (data.task=multi_label). Set another "
            f"loss, or leave it out."
        )
    for key in ("trainer.monitor", "checkpoint.monitor"):
        if (name := get_config_value(config, key)) in LABEL_MONITORS:
            raise ConfigError(
                f"{key}={name} cannot apply to images of one class each: it is a metric of "
                f"multi-label images. Set accuracy, balanced_accuracy, macro_f1 or loss."
            )
