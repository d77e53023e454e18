"""``--prior``: which shares of the classes a model's answers are for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import ModelBundle
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
    """Return the model with its answers moved to other shares of the classes.

    Args:
        bundle: The model.
        prior: "uniform", "train", "model" for the network's own answers, or a file of shares; None
            leaves what the card says.
        reporter: Told which classes can never be predicted.

    Raises:
        ConfigError: There is no such prior, or the model does not know which one it has.
    """
    if prior is None:
        return bundle
    card = bundle.card
    check_prior(prior, card.classes)
    if card.priors is None:
        raise ConfigError(
            f"--prior {prior} cannot apply: an older finetune wrote {bundle.source}, and it does "
            f"not say which class shares its answers are for. Leave out --prior, or train it again."
        )
    target = _resolve_target(prior, card.priors, card.classes)
    _check_target(prior, target, card)
    if target is not None and (never := _find_zero_classes(target, card.classes)):
        few = ", ".join(never[:5]) + (f" … ({len(never)} classes)" if len(never) > 5 else "")
        reporter.note(f"Never predicted, as the share is 0 in {prior}: {few}.")
    return replace(bundle, card=replace(card, priors=replace(card.priors, target=target)))


def prior_to_json(card: ModelCard, *, requested: str | None) -> dict[str, Any]:
    """Return plain values that say which shares of the classes a card's answers are for.

    Args:
        card: With the target that is used.
        requested: What ``--prior`` said; None without.
    """
    priors = card.priors
    if priors is None:
        words = "unknown, as an older finetune wrote the model: as the network says"
        return {"asked": requested, "adjusted": False, "target_prior": words, "shares": None}
    words, own = (
        describe_class_prior(shares, priors.train) for shares in (priors.effective, priors.model)
    )
    adjusted = priors.target is not None
    if adjusted and requested is not None and requested not in PRIOR_NAMES:
        words = f"the shares in {requested}"
    words += f"; the network's own: {own}" if adjusted else ", as the network says"
    shares = dict(zip(card.classes, priors.effective, strict=True))
    return {"asked": requested, "adjusted": adjusted, "target_prior": words, "shares": shares}


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


def _check_target(prior: str, target: ClassPrior | None, card: ModelCard) -> None:
    """Raise where a class is wanted of which the network says that it is impossible."""
    assert card.priors is not None, "looked for by the caller"
    if target is None:
        return
    try:
        compute_logit_shift(target, card.priors.model)
    except ValueError as error:
        pairs = zip(target, card.priors.model, strict=True)
        zeros = [0.0 if wanted > 0 >= known else 1.0 for wanted, known in pairs]
        names = ", ".join(_find_zero_classes(zeros, card.classes))
        raise ConfigError(
            f"--prior {prior} cannot apply: the network gives {names} no share at all, which no "
            f"prior can change. Use the model as it was before, or give 0 to it in a file."
        ) from error


def _find_zero_classes(values: Sequence[float], classes: Sequence[str]) -> list[str]:
    return [name for name, share in zip(classes, values, strict=True) if share == 0]
