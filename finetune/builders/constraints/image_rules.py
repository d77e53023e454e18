"""Constraints of augmentation, of classes without weight, and of the pixel cache."""

from finetune.builders.constraints.constraint import Constraint
from finetune.builders.resolve import RunSpec
from finetune.config.resolved import ResolvedConfig
from finetune.config.sections.augment import AUGMENT_NAMES

PRESETS_BY_STRENGTH = tuple(name for name in AUGMENT_NAMES if name != "none")


def _has_weaker_preset(config: ResolvedConfig, _: RunSpec) -> bool:
    """Return whether the preset of rare classes is not stronger than that of the others."""
    augment = config.augment
    if augment.rare_class_preset == "off":
        return False
    if augment.name not in PRESETS_BY_STRENGTH:
        return True
    strength = PRESETS_BY_STRENGTH.index
    return strength(augment.name) >= strength(augment.rare_class_preset)


IMAGES = (
    Constraint(
        ("augment.rare_class_preset", "augment.name"),
        _has_weaker_preset,
        f"the preset of rare classes must be stronger than the other one, in the order "
        f"{', '.join(PRESETS_BY_STRENGTH)}. Leave one of them out.",
    ),
    Constraint(
        ("augment.rare_class_preset", "augment.rare_class_fraction"),
        lambda c, run: c.augment.rare_class_preset != "off" and not run.rare_classes,
        "no class has fewer than {config.augment.rare_class_fraction:.0%} of the training images "
        "of the largest class. Leave augment.rare_class_preset out, or increase "
        "augment.rare_class_fraction.",
    ),
    Constraint(
        ("imbalance.head_rebalancing", "imbalance.sampler", "imbalance.class_weights", "loss.name"),
        lambda _, run: bool(run.untrained_classes),
        "class '{run.untrained_classes[0]}' has no weight in the last epoch, so probabilities "
        "cannot be adjusted for it. Change the sampler or the weights, or set "
        "imbalance.head_rebalancing=none.",
    ),
    Constraint(
        ("data.cache_shorter_side", "data.cache"),
        lambda c, _: c.data.cache == "off" and c.data.cache_shorter_side != "auto",
        "without a cache images are decoded at full size. Leave one of them out.",
    ),
)
