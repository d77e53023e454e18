"""Choices that were made on validation images, whose metrics are therefore optimistic."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.bundle.model_card import ModelCard


def list_validation_choices(cards: Iterable["ModelCard"]) -> tuple[str, ...]:
    """Return what validation images chose of a model, in words; empty if nothing is known.

    The thresholds of multi-label models are not named: the metrics that depend on them are.

    Args:
        cards: Cards of the model and of its members.
    """
    choices = []
    for card in cards:
        facts = card.facts
        if (facts.get("soup") or {}).get("method") == "greedy":
            choices.append("the runs of the soup")
        if (facts.get("interpolation") or {}).get("fraction") is not None:
            choices.append("the position between the probe and the last epoch")
        if "ensemble_weights" in facts:
            choices.append("the weights of the models")
        if facts.get("calibration") is not None:
            choices.append("the temperature")
        if facts.get("prior_adjustment") is not None:
            choices.append("the strength of the adjustment to other class frequencies")
    return tuple(dict.fromkeys(choices))


def describe_validation_choices(choices: Iterable[str]) -> str:
    """Return a sentence on metrics of the images that made the choices; "" without any."""
    *first, last = [*choices] or [""]
    if not last:
        return ""
    names = f"{', '.join(first)} and {last}" if first else last
    return (
        f"The validation images also chose {names}: metrics of the validation images are somewhat "
        f"optimistic. Compare models on test images."
    )
