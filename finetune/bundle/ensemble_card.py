"""Model card of an ensemble: the mean of several models as one model, in JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.bundle.model_card import ModelCard, get_train_counts
from finetune.bundle.renamed_facts import rename_facts
from finetune.errors import ModelError, RunFolderError
from finetune.evaluation.priors import ClassPrior, Priors, is_same_prior, normalize_prior

ENSEMBLE_FORMAT_VERSION = 2
"""Format of ``finetune.json`` of an ensemble; releases that know single models alone refuse it."""

_MAX_LISTED_CLASSES = 5


def combine_cards(
    cards: Sequence[ModelCard],
    weights: Sequence[float],
    *,
    names: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Return the card of a weighted mean of models, with the classes in the order of the first.

    Its temperature is 1: each member calibrates its own probabilities. Its priors are the mean of
    those of the members, and its preprocessing is that of the first.

    Args:
        cards: Cards of the members.
        weights: Weights of the members, which sum to 1.
        names: Names of the members in messages.
        facts: Further facts, such as metrics.

    Raises:
        ModelError: The members do not have the same classes.
    """
    first = cards[0]
    for card, name in zip(cards[1:], names[1:], strict=True):
        check_same_classes(first, card, names=(names[0], name))
    orders = [get_class_order(card, first.classes) for card in cards]
    return replace(
        first,
        backbone=" + ".join(dict.fromkeys(card.backbone for card in cards)),
        model_args={},
        facts={**_combine_facts(cards, weights), **(facts or {})},
        temperature=1.0,
        priors=_combine_priors([card.priors for card in cards], weights, orders),
        thresholds=_combine_thresholds([card.thresholds for card in cards], weights, orders),
    )


def check_same_classes(one: ModelCard, other: ModelCard, *, names: tuple[str, str]) -> None:
    """Check that two models have the same classes, in any order, of the same kind.

    Raises:
        ModelError: They do not; the message names the difference.
    """
    if one.is_multi_label != other.is_multi_label:
        pair = names if one.is_multi_label else names[::-1]
        raise ModelError(
            f"{pair[0]} gives any number of labels to an image, and {pair[1]} one class. Combine "
            f"models of the same kind."
        )
    if set(one.classes) == set(other.classes):
        return
    parts = [
        f"only {name} has {_list_classes([c for c in own.classes if c not in rest.classes])}"
        for own, rest, name in ((one, other, names[0]), (other, one, names[1]))
        if set(own.classes) - set(rest.classes)
    ]
    raise ModelError(
        f"{names[0]} and {names[1]} do not have the same classes: {'; '.join(parts)}. Combine "
        f"models of the same classes."
    )


def get_class_order(card: ModelCard, classes: Sequence[str]) -> list[int]:
    """Return the index of each of the given classes in the card's own order, shape (K,)."""
    index = {name: number for number, name in enumerate(card.classes)}
    return [index[name] for name in classes]


def normalize_weights(weights: Sequence[float] | None, num_members: int) -> tuple[float, ...]:
    """Return the weights of the members, which sum to 1; equal ones for None.

    Raises:
        ValueError: Their number differs, one is negative or not finite, or all are 0.
    """
    if weights is None:
        return (1 / num_members,) * num_members
    values = tuple(float(weight) for weight in weights)
    if len(values) != num_members:
        raise ValueError(f"{len(values)} weights for {num_members} members")
    total = sum(values)
    if not 0 < total < math.inf or min(values) < 0:
        raise ValueError(f"weights {list(values)} must be finite, non-negative and not all 0")
    return tuple(value / total for value in values)


def is_ensemble(tree: Mapping[str, Any]) -> bool:
    """Return whether the content of ``finetune.json`` describes an ensemble."""
    return "members" in tree


def ensemble_to_json(
    card: ModelCard, cards: Sequence[ModelCard], weights: Sequence[float]
) -> dict[str, Any]:
    """Return the content of ``finetune.json`` of an ensemble, but for versions.

    Args:
        card: Card of the ensemble.
        cards: Cards of the members.
        weights: Weights of the members.
    """
    return {
        "format": ENSEMBLE_FORMAT_VERSION,
        "kind": "ensemble",
        "classes": list(card.classes),
        "members": [
            {"folder": get_member_folder(number), "backbone": member.backbone, "weight": weight}
            for number, (member, weight) in enumerate(zip(cards, weights, strict=True))
        ],
        # for those that read the card alone: the model has those of its members
        **({} if card.thresholds is None else {"thresholds": list(card.thresholds)}),
        "facts": dict(card.facts),
    }


def parse_ensemble(tree: Mapping[str, Any]) -> tuple[list[Path], list[float], dict[str, Any]]:
    """Return the relative folders of the members, their weights, and the facts.

    Raises:
        KeyError: A required key is missing.
        ValueError: There is no member, a weight is invalid, or a folder is not below the bundle.
        RunFolderError: The tree was written by a newer release.
    """
    if tree["format"] > ENSEMBLE_FORMAT_VERSION:
        raise RunFolderError(
            f"written by a newer release of finetune (format {tree['format']}; this release "
            f"reads up to {ENSEMBLE_FORMAT_VERSION}). Upgrade finetune."
        )
    folders = [Path(member["folder"]) for member in tree["members"]]
    if not folders:
        raise ValueError("the ensemble has no members")
    if any(folder.is_absolute() or ".." in folder.parts for folder in folders):
        raise ValueError("a member lies outside the folder of the ensemble")
    weights = [float(member["weight"]) for member in tree["members"]]
    normalize_weights(weights, len(folders))
    return folders, weights, rename_facts(tree["facts"])


def get_member_folder(number: int) -> str:
    """Return the folder of a member, relative to that of the ensemble."""
    return f"members/{number}"


def _combine_facts(cards: Sequence[ModelCard], weights: Sequence[float]) -> dict[str, Any]:
    """Return the facts of an ensemble that follow from those of its members."""
    first = cards[0]
    facts: dict[str, Any] = {
        "ensemble": [
            {
                "backbone": card.backbone,
                "weight": weight,
                **{key: card.facts[key] for key in ("weights", "seed") if key in card.facts},
                "metrics": card.facts.get("metrics", {}),
            }
            for card, weight in zip(cards, weights, strict=True)
        ]
    }
    counts = [get_train_counts(card.facts, first.classes) for card in cards]
    if known := [count for count in counts if count is not None]:
        means = [round(sum(column) / len(known)) for column in zip(*known, strict=True)]
        if len(known) == len(cards):
            facts["train_images"] = dict(zip(first.classes, means, strict=True))
    if score_losses := [card.score_loss for card in cards if card.score_loss is not None]:
        facts["loss"] = score_losses[0]  # one such member leaves the mean without a class prior
    if first.facts.get("data") is not None and all(
        card.facts.get("data") == first.facts["data"] for card in cards
    ):
        facts["data"] = first.facts["data"]
    if all("flipped" in card.facts for card in cards):
        unflipped = next((card for card in cards if not card.facts["flipped"]), first)
        facts |= {key: unflipped.facts.get(key) for key in ("flipped", "flipped_by")}
    return facts


def _combine_priors(
    members: Sequence[Priors | None], weights: Sequence[float], orders: Sequence[Sequence[int]]
) -> Priors | None:
    """Return the mean of the members' priors; None if one is unknown.

    If all are adjusted to the same target, that is the target. Otherwise the mean of what the
    probabilities of each member assume is the model prior, without a target.
    """
    known = [priors for priors in members if priors is not None]
    if len(known) < len(members):
        return None

    def average(priors: Sequence[ClassPrior]) -> ClassPrior:
        aligned = _align(priors, orders)
        columns = zip(*aligned, strict=True)
        return normalize_prior(
            [sum(w * v for w, v in zip(weights, column, strict=True)) for column in columns]
        )

    train = average([priors.train for priors in known])
    targets = [priors.target for priors in known if priors.target is not None]
    if len(targets) == len(known):
        aligned = _align(targets, orders)
        if all(is_same_prior(target, aligned[0]) for target in aligned):
            return Priors(train, average([priors.model for priors in known]), aligned[0])
    return Priors(train, average([priors.effective for priors in known]))


def _combine_thresholds(
    members: Sequence[tuple[float, ...] | None],
    weights: Sequence[float],
    orders: Sequence[Sequence[int]],
) -> tuple[float, ...] | None:
    """Return the mean threshold of each label; None for classes that exclude each other."""
    known = [thresholds for thresholds in members if thresholds is not None]
    if not known:
        return None
    columns = zip(*_align(known, orders), strict=True)
    return tuple(
        sum(w * value for w, value in zip(weights, column, strict=True)) for column in columns
    )


def _align(priors: Sequence[ClassPrior], orders: Sequence[Sequence[int]]) -> list[ClassPrior]:
    return [
        tuple(prior[index] for index in order) for prior, order in zip(priors, orders, strict=True)
    ]


def _list_classes(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_MAX_LISTED_CLASSES])
    num_hidden = len(names) - _MAX_LISTED_CLASSES
    return shown if num_hidden <= 0 else f"{shown} and {num_hidden} more"
