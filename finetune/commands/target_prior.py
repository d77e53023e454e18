"""Target class prior of a model, as requested by ``--prior``."""

from dataclasses import replace
from typing import Any

from finetune.bundle.bundle import ModelBundle, combine_models
from finetune.bundle.ensemble_card import get_class_order
from finetune.bundle.model_card import ModelCard
from finetune.commands.prior_checks import (
    check_prior_states,
    check_target,
    find_zero_classes,
    resolve_target,
)
from finetune.evaluation.prior_file import PRIOR_NAMES, check_prior
from finetune.evaluation.priors import ClassPrior, describe_class_prior
from finetune.types import Reporter


def apply_prior(bundle: ModelBundle, prior: str | None, reporter: Reporter) -> ModelBundle:
    """Return the model with another target class prior in its card.

    Each member of an ensemble is adjusted from its own model prior to the same target; "train" is
    the mean of their training priors.

    Args:
        bundle: Model.
        prior: "uniform", "train", "model" for the prior that the network was trained with, or a
            file; None keeps the target prior of the card.
        reporter: Receiver of a note on classes that are never predicted.

    Raises:
        ConfigError: Unknown prior, invalid file, or the card does not state the model prior.
    """
    if prior is None:
        return bundle
    card = bundle.card
    for member in bundle.members or (bundle,):
        check_prior_states(prior, member.card, source=member.source)
    check_prior(prior, card.classes)
    assert card.priors is not None, "as each member states its own"
    target = resolve_target(prior, card.priors, card.classes)
    members = tuple(_set_target(member, target, prior, card) for member in bundle.members)
    check_target(prior, target, card)
    if target is not None and (zeros := find_zero_classes(target, card.classes)):
        names = ", ".join(zeros[:5]) + (f", … ({len(zeros)} classes)" if len(zeros) > 5 else "")
        reporter.note(f"Never predicted, because their prior is 0 in {prior}: {names}.")
    card = replace(card, priors=replace(card.priors, target=target))
    if members and target is None:
        card = combine_models(members, weights=bundle.weights, facts=card.facts).card
    return replace(bundle, card=card, members=members)


def prior_to_json(card: ModelCard, *, requested: str | None) -> dict[str, Any]:
    """Return a JSON description of the class prior that the probabilities of a model assume.

    Args:
        card: Card with the target prior that is used.
        requested: Value of ``--prior``; None without it.

    Returns:
        "requested"; "adjusted", whether logits are shifted to a target prior; "target_prior", a
        description; and "class_prior", class name to prior, None if unknown.
    """
    priors = card.priors
    description = None
    if card.is_multi_label:
        description = "none, each label has a probability of its own"
    elif card.score_loss is not None:
        description = f"none, the logits are scores of loss.name={card.score_loss}"
    if description is not None:
        return {
            "requested": requested,
            "adjusted": False,
            "target_prior": description,
            "class_prior": None,
        }
    if priors is None:
        return {
            "requested": requested,
            "adjusted": False,
            "target_prior": "unknown, not adjusted (the model states no class prior)",
            "class_prior": None,
        }
    target, model = (
        describe_class_prior(prior, priors.train) for prior in (priors.effective, priors.model)
    )
    is_adjusted = priors.target is not None
    if is_adjusted and requested is not None and requested not in PRIOR_NAMES:
        target = f"from {requested}"
    if is_adjusted:
        description = f"{target} (model prior: {model})"
    elif "prior_in_head" in card.facts:
        description = f"{target}, folded into the classifier bias"
    else:
        description = f"{target}, not adjusted"
    return {
        "requested": requested,
        "adjusted": is_adjusted,
        "target_prior": description,
        "class_prior": dict(zip(card.classes, priors.effective, strict=True)),
    }


def _set_target(
    member: ModelBundle, target: ClassPrior | None, prior: str, card: ModelCard
) -> ModelBundle:
    """Return a member of an ensemble with a target prior, given in the order of the ensemble.

    Raises:
        ConfigError: The target has a class that the model prior of the member excludes.
    """
    if target is not None:
        order = get_class_order(card, member.card.classes)
        target = tuple(target[index] for index in order)
    check_target(prior, target, member.card)
    assert member.card.priors is not None, "checked by the caller"
    priors = replace(member.card.priors, target=target)
    return replace(member, card=replace(member.card, priors=priors))
