"""Searched keys that apply to some choices of another key only, as the widths of an mlp head."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.commands.tune.space.search_space import SearchDimension
from finetune.config.sections.optim import FINAL_FACTOR_SCHEDULES, MOMENTUM_OPTIMIZERS

CONDITIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "model.head_params": ("model.head", ("mlp",)),
    "optim.momentum": ("optim.name", MOMENTUM_OPTIMIZERS),
    "optim.nesterov": ("optim.name", ("sgd",)),
    "lr_schedule.final_factor": ("lr_schedule.name", FINAL_FACTOR_SCHEDULES),
}
"""Key or section to the key that it depends on, and the values of that for which it applies."""

_COMPONENTS = ("optim", "lr_schedule", "loss", "unfreeze")
"""Sections whose ``params`` belong to the component that ``name`` chooses."""


def select_applicable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the drawn values without those that cannot apply to others of them.

    A value whose component is not searched is left, for the run to accept or to refuse.

    Args:
        values: Value of each searched key.
    """
    return {key: value for key, value in values.items() if _applies(key, values)}


def find_companions(dimension: SearchDimension, space: Sequence[SearchDimension]) -> dict[str, Any]:
    """Return a choice of another searched key for which a key applies; empty if it needs none.

    Args:
        dimension: Dimension of the key.
        space: All dimensions of the study.
    """
    condition = _find_condition(dimension.key)
    if condition is None:
        return {}
    name, accepted = condition
    choices = next((other.choices for other in space if other.key == name), ())
    return next(({name: choice} for choice in choices if choice in accepted), {})


def _find_condition(key: str) -> tuple[str, tuple[str, ...]] | None:
    return next(
        (rule for prefix, rule in CONDITIONS.items() if f"{key}.".startswith(f"{prefix}.")), None
    )


def _applies(key: str, values: Mapping[str, Any]) -> bool:
    condition = _find_condition(key)
    if condition is not None:
        name, accepted = condition
        return name not in values or values[name] in accepted
    section, _, parameter = key.partition(".params.")
    component = values.get(f"{section}.name")
    if not parameter or section not in _COMPONENTS or component is None:
        return True
    return _takes_parameter(section, component, parameter)


def _takes_parameter(section: str, component: str, parameter: str) -> bool:
    from finetune.builders.optimization.component_params import names_parameter
    from finetune.losses import LOSSES
    from finetune.training.optimization.optimizers import OPTIMIZERS
    from finetune.training.schedules.learning_rate import LR_SCHEDULES
    from finetune.training.schedules.unfreeze import UNFREEZE_SCHEDULES

    tables: Mapping[str, Mapping[str, Any]] = {
        "optim": {name: entry.create for name, entry in OPTIMIZERS.items()},
        "lr_schedule": LR_SCHEDULES,
        "loss": LOSSES,
        "unfreeze": UNFREEZE_SCHEDULES,
    }
    function = tables[section].get(component)
    return function is None or names_parameter(function, parameter)
