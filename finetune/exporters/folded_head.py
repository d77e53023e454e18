"""Model whose temperature and class prior are folded into its linear head."""

from dataclasses import replace

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.model_card import ModelCard
from finetune.models.head import fold_temperature_and_shift


def fold_adjustment_into_head(bundle: ModelBundle) -> ModelBundle:
    """Return the model with temperature and prior shift folded into its linear head, if it has one.

    The card is updated so that the logits are not adjusted twice: the temperature becomes 1, and
    the target prior becomes the model prior.
    """
    card = bundle.card
    if card.temperature == 1 and card.shift is None:
        return bundle
    network = fold_temperature_and_shift(
        bundle.network, temperature=card.temperature, shift=card.shift
    )
    if network is None:
        return bundle
    return replace(bundle, network=network, card=describe_folded(card))


def describe_folded(card: ModelCard) -> ModelCard:
    """Return the card of a model whose logits already include temperature and prior shift."""
    facts, priors = dict(card.facts), card.priors
    if card.temperature != 1:
        facts["temperature_in_head"] = card.temperature
    if priors is not None and priors.target is not None:
        facts["prior_in_head"] = list(priors.target)
        priors = replace(priors, model=priors.target, target=None)
    return replace(card, facts=facts, temperature=1.0, priors=priors)
