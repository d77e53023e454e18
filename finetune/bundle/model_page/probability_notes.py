"""Paragraphs of a README on the probabilities: temperature, class prior, pixel range."""

from finetune.bundle.model_card import ModelCard
from finetune.evaluation.priors import ClassPrior, describe_class_prior, is_same_prior


def render_probabilities(card: ModelCard) -> str:
    """Return what the probabilities of a model are, and what timm leaves out; may be empty."""
    return _describe_temperature(card) + _describe_priors(card) + _describe_pixel_range(card)


def _describe_temperature(card: ModelCard) -> str:
    """Return the paragraph about the temperature; empty without one."""
    if card.temperature != 1:
        return (
            f"The probabilities are calibrated: finetune divides the logits by the temperature "
            f"{card.temperature!r}; timm does not. `finetune export` writes a folder whose "
            f"classifier weights include the temperature.\n\n"
        )
    if (folded := card.facts.get("temperature_in_head", 1)) != 1:
        return (
            f"The probabilities are calibrated: the classifier weights include the temperature "
            f"{folded!r}.\n\n"
        )
    return ""


def _describe_priors(card: ModelCard) -> str:
    """Return the paragraph about the class prior of the probabilities; empty if it is unknown."""
    priors = card.priors
    if priors is None:
        return ""
    if card.score_loss is not None:
        return (
            f"The probabilities assume no class prior: the network was trained with loss.name="
            f"{card.score_loss}, whose logits are scores.\n\n"
        )
    description = describe_class_prior(priors.effective, priors.train)
    evaluated = _get_evaluation_prior(card)
    if evaluated is not None and not is_same_prior(evaluated, priors.effective):
        description += (
            f" (the metrics above are for another one: "
            f"{describe_class_prior(evaluated, priors.train)}; `finetune evaluate` gives those for "
            f"this one)"
        )
    if priors.target is not None:
        return (
            f"Class prior of the probabilities: {description}. The network's own prior: "
            f"{describe_class_prior(priors.model, priors.train)}. finetune adds log(target / "
            f"model), of the `priors` in finetune.json, to the logits of each class (`shift` "
            f"below); timm does not. `finetune export` writes a folder whose classifier bias "
            f"includes it.\n\n"
        )
    if "prior_in_head" in card.facts:
        return (
            f"Class prior of the probabilities: {description}. The classifier bias includes the "
            f"adjustment, log(target / model); nothing is left to do.\n\n"
        )
    return f"Class prior of the probabilities: {description}.\n\n"


def _describe_pixel_range(card: ModelCard) -> str:
    """Return the paragraph about images of more than 8 bits; empty without a range of their own."""
    if card.pixel_range is None:
        return ""
    low, high = str(card.pixel_range).split(":")
    return (
        f"Images of more than 8 bits: {low} is black and {high} is white. finetune scales them to "
        f"8 bits by this range, in 256 intervals; timm does not.\n\n"
    )


def _get_evaluation_prior(card: ModelCard) -> ClassPrior | None:
    """Return the class prior that the model was evaluated with; None if unknown."""
    for evaluation in card.facts.get("evaluations", {}).values():
        prior = evaluation["prior"]["class_prior"]
        return None if prior is None else tuple(prior[name] for name in card.classes)
    return None
