"""Choices that were made on validation images, whose metrics are therefore optimistic."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.bundle.model_card import ModelCard

TRAINING_CHOICES_KEY = "training_choices"
"""Fact of a card: keys of what validation images chose in training, a list."""

FOLD_CHOICES_KEY = "fold_choices"
"""Entry of the evaluation of the held-out images of folds: what they chose, in words."""

_TRAINING_CHOICES = {
    "last_stage_epochs": "the epoch of the last stage",
    "learning_rate_falls": "when the learning rate fell",
    "epoch": "the epoch",
    "early_stop": "when training ended",
    "interpolation": "how much of the fine-tuning is kept",
}
"""What each key of that fact means, in words."""


def list_validation_choices(cards: Iterable["ModelCard"]) -> tuple[str, ...]:
    """Return what validation images chose of a model, in words; empty if nothing is known.

    The thresholds of multi-label models are not named: the metrics that depend on them are.

    Args:
        cards: Cards of the model and of its members.
    """
    choices = []
    for card in cards:
        facts = card.facts
        choices += [
            text for key, text in _TRAINING_CHOICES.items() if key in list_training_choices(facts)
        ]
        if (facts.get("soup") or {}).get("method") == "greedy":
            choices.append("the runs of the soup")
        if (facts.get("rebalancing") or {}).get("tau") is not None:
            choices.append("tau of the classifier")
        if "ensemble_weights" in facts:
            choices.append("the weights of the models")
        if uses_fitted_temperature(facts):
            choices.append("the temperature")
        if facts.get("prior_adjustment") is not None:
            choices.append("the strength of the adjustment to other class frequencies")
    return tuple(dict.fromkeys(choices))


def uses_fitted_temperature(facts: Mapping[str, Any]) -> bool:
    """Return whether a fitted temperature divides the logits; False where it did not help.

    Args:
        facts: Facts of a card.
    """
    calibration = facts.get("calibration")
    if calibration is None:
        return False
    fitted = calibration.get("fitted_temperature")
    # older cards may not tell the two apart
    return fitted is None or calibration.get("temperature", fitted) == fitted


def list_training_choices(facts: Mapping[str, Any]) -> list[str]:
    """Return the keys of what validation images chose in the training of a model.

    Args:
        facts: Facts of a card.
    """
    keys = [*(facts.get(TRAINING_CHOICES_KEY) or ())]
    if facts.get("early_stop") is not None:
        keys.append("early_stop")
    if (facts.get("interpolation") or {}).get("fraction") is not None:
        keys.append("interpolation")
    return list(dict.fromkeys(keys))


def describe_validation_choices(choices: Iterable[str], *, has_folds: bool = False) -> str:
    """Return a sentence on metrics of the images that made the choices; "" without any.

    Args:
        choices: What they chose, in words.
        has_folds: Whether they are the held-out images of folds, each of which chose for its own.
    """
    *first, last = [*choices] or [""]
    if not last:
        return ""
    names = f"{', '.join(first)} and {last}" if first else last
    images = "held-out images" if has_folds else "validation images"
    return (
        f"The {images}{' of each fold' if has_folds else ''} also chose {names}: metrics of the "
        f"{images} are somewhat optimistic. Compare models on test images."
    )


def describe_card_choices(card: "ModelCard", members: Iterable["ModelCard"] = ()) -> str:
    """Return the sentence on what the images of a card's metrics chose; "" without any.

    Args:
        card: Card of a model.
        members: Cards of the members of an ensemble.
    """
    facts = card.facts
    metrics: Mapping[str, Any] = facts.get("metrics") or {}
    if "out_of_fold" in metrics:
        evaluation = (facts.get("evaluations") or {}).get("out_of_fold") or {}
        return describe_validation_choices(evaluation.get(FOLD_CHOICES_KEY, ()), has_folds=True)
    choices = list_validation_choices([card, *members]) if "val" in metrics else ()
    return describe_validation_choices(choices)
