"""Search space of multi-label images: which choices apply, and what then compares the trials."""

from collections.abc import Sequence

from pydantic import ValidationError

from finetune.commands.tune.space.search_space import SearchDimension
from finetune.config.facts import Facts
from finetune.config.load import replace_values
from finetune.config.multi_label import resolve_task
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.evaluation.multi_label.label_metrics import MEAN_AVERAGE_PRECISION

_DISTORTING_CHOICES = {
    "loss.name": "asymmetric",
    "imbalance.strategy": "class_weights",
    "imbalance.class_weights": "balanced",
}
"""Choices with which the probabilities of a model are no frequencies."""


def check_choices(space: Sequence[SearchDimension], resolved: Config, facts: Facts) -> None:
    """Check that the choices of each key apply to the images, of one class or of any labels.

    Args:
        space: Dimensions of the user.
        resolved: Config of the default trial, without "auto".
        facts: What the images are.

    Raises:
        ConfigError: One does not; the message names the option and the choice.
    """
    for dimension in space:
        if dimension.key.count(".") > 1:  # a parameter, whose component is another key
            continue
        for value in dimension.choices:
            try:
                resolve_task(replace_values(resolved, {dimension.key: value}), facts)
            except ValidationError:  # needs values of other keys, which a trial may have
                continue
            except ConfigError as error:
                raise ConfigError(f"{dimension.label}: {error}") from error


def choose_shared_monitor(config: Config, space: Sequence[SearchDimension]) -> str | None:
    """Return the metric that all trials on multi-label images need; None for that of ``fit``.

    A loss or weights that distort probabilities lose by log loss whatever they find, and ``fit``
    chooses their epochs by mean average precision. Where only some of the trials have such, all are
    judged by it.

    Args:
        config: Config as given.
        space: Dimensions of the user.
    """
    if config.checkpoint.monitor != "auto" or config.trainer.monitor != "auto":
        return None
    distorts = any(
        one.key in _DISTORTING_CHOICES and _DISTORTING_CHOICES[one.key] in one.choices
        for one in space
    )
    return MEAN_AVERAGE_PRECISION if distorts else None
