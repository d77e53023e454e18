"""Target class prior of a model, as requested by ``--prior``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import ModelBundle, combine_models
from finetune.bundle.ensemble_card import get_class_order
from finetune.bundle.model_card import ModelCard
from finetune.errors import ConfigError
from finetune.evaluation.prior_file import PRIOR_NAMES, check_prior, read_prior
from finetune.evaluation.priors import (
    ClassPrior,
    Priors,
    build_uniform_prior,
    compute_logit_shift,
    describe_class_prior,
)
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
    if card.is_multi_label:
        raise ConfigError(
            f"--prior {prior} cannot apply to a multi-label model: its labels do not exclude each "
            f"other, and have no common prior. Leave it out."
        )
    check_prior(prior, card.classes)
    _check_losses(prior, bundle)
    if card.priors is None:
        members = bundle.members or (bundle,)
        source = next((m.source for m in members if m.card.priors is None), bundle.source)
        raise ConfigError(
            f"--prior {prior} cannot be used: {source} does not state the class prior that its "
            f"logits assume; models of other programs state none, nor do those of the first "
            f"releases of finetune. Leave out --prior, or use a model of finetune fit."
        )
    target = _resolve_target(prior, card.priors, card.classes)
    members = tuple(_set_target(member, target, prior, card) for member in bundle.members)
    _check_target(prior, target, card)
    if target is not None and (zeros := _find_zero_classes(target, card.classes)):
        names = ", ".join(zeros[:5]) + (f", … ({len(zeros)} classes)" if len(zeros) > 5 else "")
        reporter.note(f"Never predicted, because their prior is 0 in {prior}: {names}.")
    card = replace(card, priors=replace(card.priors, target=target))
    if members and target is None:
        card = combine_models(members, weights=bundle.weights, facts=card.facts).card
    return replace(bundle, card=card, members=members)


def _check_losses(prior: str, bundle: ModelBundle) -> None:
    """Check that no model was trained with a loss of scores, if its logits are to be adjusted.

    Raises:
        ConfigError: One was. A classifier that was fitted again by ``crt`` is not affected.
    """
    for member in bundle.members or (bundle,):
        loss = member.card.score_loss
        if prior != "model" and loss is not None:
            raise ConfigError(
                f"--prior {prior} cannot be used: {member.source} was trained with "
                f"loss.name={loss}, whose logits are scores and assume no class prior that could "
                f"be adjusted. Leave out --prior, or train with loss.name=cross_entropy."
            )


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


def _resolve_target(prior: str, priors: Priors, classes: Sequence[str]) -> ClassPrior | None:
    if prior == "model":
        return None
    if prior == "train":
        return priors.train
    return (
        build_uniform_prior(len(classes))
        if prior == "uniform"
        else read_prior(Path(prior), classes)
    )


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
    _check_target(prior, target, member.card)
    assert member.card.priors is not None, "checked by the caller"
    priors = replace(member.card.priors, target=target)
    return replace(member, card=replace(member.card, priors=priors))


def _check_target(prior: str, target: ClassPrior | None, card: ModelCard) -> None:
    """Check that no class has a target prior above 0 and a model prior of 0.

    Raises:
        ConfigError: There is such a class; no adjustment can give it a probability above 0.
    """
    assert card.priors is not None, "checked by the caller"
    if target is None:
        return
    try:
        compute_logit_shift(target, card.priors.model)
    except ValueError as error:
        pairs = zip(target, card.priors.model, strict=True)
        impossible = [0.0 if wanted > 0 >= known else 1.0 for wanted, known in pairs]
        names = ", ".join(_find_zero_classes(impossible, card.classes))
        raise ConfigError(
            f"--prior {prior} cannot be used: the model prior of {names} is 0, which no adjustment "
            f"can change. Use the model from before the export, or a file with 0 for this class."
        ) from error


def _find_zero_classes(values: Sequence[float], classes: Sequence[str]) -> list[str]:
    return [name for name, value in zip(classes, values, strict=True) if value == 0]
