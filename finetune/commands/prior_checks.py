"""Checks whether the logits of a model can be adjusted to a target class prior."""

from collections.abc import Sequence
from pathlib import Path

from finetune.bundle.model_card import ModelCard
from finetune.errors import ConfigError
from finetune.evaluation.prior_file import check_prior, read_prior
from finetune.evaluation.priors import (
    ClassPrior,
    Priors,
    build_uniform_prior,
    compute_logit_shift,
)


def check_prior_applies(prior: str, card: ModelCard, *, source: Path) -> None:
    """Check that a model can be adjusted to the target prior of ``--prior``.

    Args:
        prior: Value of ``--prior``.
        card: Card of the model.
        source: Path of the model, for messages.

    Raises:
        ConfigError: It cannot, or the value is invalid.
    """
    check_prior_states(prior, card, source=source)
    check_prior(prior, card.classes)
    assert card.priors is not None, "checked before"
    check_target(prior, resolve_target(prior, card.priors, card.classes), card)


def check_prior_states(prior: str, card: ModelCard, *, source: Path) -> None:
    """Check that the logits of a model assume a class prior, which its card states.

    Args:
        prior: Value of ``--prior``.
        card: Card of the model.
        source: Path of the model, for messages.

    Raises:
        ConfigError: The model is multi-label, was trained with a loss of scores, or states none. A
            classifier that was fitted again by ``crt`` has no such loss.
    """
    if card.is_multi_label:
        raise ConfigError(
            f"--prior {prior} cannot apply to a multi-label model: its labels do not exclude each "
            f"other, and have no common prior. Leave it out."
        )
    if prior != "model" and card.score_loss is not None:
        raise ConfigError(
            f"--prior {prior} cannot be used: {source} was trained with "
            f"loss.name={card.score_loss}, whose logits are scores and assume no class prior that "
            f"could be adjusted. Leave out --prior, or train with loss.name=cross_entropy."
        )
    if card.priors is None:
        raise ConfigError(
            f"--prior {prior} cannot be used: {source} does not state the class prior that its "
            f"logits assume; models of other programs state none, nor do those of the first "
            f"releases of finetune. Leave out --prior, or use a model of finetune fit."
        )


def resolve_target(prior: str, priors: Priors, classes: Sequence[str]) -> ClassPrior | None:
    """Return the target prior that ``--prior`` names; None for that of the model.

    Raises:
        ConfigError: The file is invalid.
    """
    if prior == "model":
        return None
    if prior == "train":
        return priors.train
    return (
        build_uniform_prior(len(classes))
        if prior == "uniform"
        else read_prior(Path(prior), classes)
    )


def check_target(prior: str, target: ClassPrior | None, card: ModelCard) -> None:
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
        names = ", ".join(find_zero_classes(impossible, card.classes))
        raise ConfigError(
            f"--prior {prior} cannot be used: the model prior of {names} is 0, which no adjustment "
            f"can change. Use the model from before the export, or a file with 0 for this class."
        ) from error


def find_zero_classes(values: Sequence[float], classes: Sequence[str]) -> list[str]:
    """Return the classes whose value is 0."""
    return [name for name, value in zip(classes, values, strict=True) if value == 0]
