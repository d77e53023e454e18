"""Names of test-time augmentations, and whether a model was trained for their flips."""

from finetune.bundle.model_card import ModelCard
from finetune.errors import ConfigError
from finetune.types import Tta

DESCRIPTIONS = {
    Tta.HFLIP: "each image and its horizontal flip",
    Tta.CROPS: "five crops of each image",
    Tta.CROPS10: "five crops of each image and of its horizontal flip",
    Tta.SIZES: "three sizes of each image",
}
"""What the probabilities are averaged over."""


def parse_tta(value: "Tta | str | bool | None") -> Tta:
    """Return the test-time augmentation of a name; True is "hflip", and False or None is "none".

    Raises:
        ConfigError: The name is unknown.
    """
    if value is None or isinstance(value, bool):
        return Tta.HFLIP if value else Tta.NONE
    if value not in list(Tta):
        raise ConfigError(
            f"--tta {value}: unknown. Choose one of {', '.join(Tta)}; --tta alone is {Tta.HFLIP}."
        )
    return Tta(value)


def describe_tta(tta: Tta) -> str:
    """Return what the probabilities are averaged over, with the option; "" without augmentation."""
    return "" if tta is Tta.NONE else f"averaged over {DESCRIPTIONS[tta]} (--tta {tta})"


def check_tta(card: ModelCard, tta: Tta = Tta.HFLIP) -> None:
    """Check that a model was trained on horizontally flipped images, if the views have flips.

    Raises:
        ConfigError: It was not, or its card does not record it.
    """
    if tta not in (Tta.HFLIP, Tta.CROPS10) or card.facts.get("flipped"):
        return
    option = f"--tta {tta}"
    instead = "Remove --tta" if tta is Tta.HFLIP else f"Use --tta {Tta.CROPS}"
    if "flipped" not in card.facts:
        raise ConfigError(
            f"{option} cannot apply: the model was written by an older finetune or by another "
            f"program, which did not record whether it was trained on flipped images. {instead}, "
            f"or train the model again."
        )
    raise ConfigError(
        f"{option} cannot apply to a model trained with {card.facts['flipped_by']}: it was not "
        f"trained on flipped images, and a flip may change a class. {instead}, or train with "
        f"flips if they do not."
    )
