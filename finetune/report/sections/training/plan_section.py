"""Section on the plan: network, phases, and settings with their reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.report.number_formats import format_setting
from finetune.report.phases import find_phases, list_groups
from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import get_backbone
from finetune.units import format_millions, format_percent, format_scientific

_RECIPE_KEYS = (
    "trainer.epochs", "trainer.batch_size", "optim.name", "optim.lr", "optim.backbone_lr_scale",
    "optim.layer_decay", "optim.weight_decay", "lr_schedule.name", "lr_schedule.warmup_fraction",
    "unfreeze.name", "unfreeze.params", "loss.name", "loss.label_smoothing",
    "imbalance.strategy", "imbalance.sampler", "imbalance.class_weights",
    "imbalance.head_rebalancing", "augment.name", "augment.hflip", "augment.vflip",
    "augment.rot90", "augment.min_crop_scale", "augment.mixup", "augment.cutmix",
    "trainer.precision", "trainer.monitor", "checkpoint.monitor", "calibration.enabled", "seed",
)  # fmt: skip
"""Keys that say how a run learns, in the order of the table."""

_UNSAID = {
    "imbalance.sampler": "uniform",
    "imbalance.class_weights": "none",
    "imbalance.head_rebalancing": "none",
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "unfreeze.params": {},
}
"""Values that are left out: nothing is done."""


@dataclass(frozen=True, slots=True)
class PlanPhase:
    """Phase of training as text."""

    epochs: str
    layers: str
    num_groups: int
    learning_rate: str


@dataclass(frozen=True, slots=True)
class Setting:
    """Setting of the config.

    Attributes:
        key: Dotted key.
        value: Value as text.
        reason: Why it has this value; empty where it is a choice of the recipe or the user.
        is_default: Whether it is the default of the key.
    """

    key: str
    value: str
    reason: str
    is_default: bool


@dataclass(frozen=True, slots=True)
class PlanSection:
    """Plan of a run.

    Attributes:
        network: Facts of the network, name and value.
        phases: Phases of training; empty for a linear probe.
        recipe: Settings that say how the run learns.
        config: All settings.
    """

    network: tuple[tuple[str, str], ...]
    phases: tuple[PlanPhase, ...]
    recipe: tuple[Setting, ...]
    config: tuple[Setting, ...]


def build_plan_section(facts: RunFacts) -> PlanSection | None:
    """Return the plan of a run, or what the card of a bundle has on its network."""
    network = tuple(_describe_network(facts))
    if not network:
        return None
    recipe = [
        key for key in _RECIPE_KEYS if key in facts.config and facts.config[key] != _UNSAID.get(key)
    ]
    measured = [key for key in facts.measured if key not in recipe]
    return PlanSection(
        network,
        tuple(_describe_phases(facts)),
        tuple(_describe_setting(facts, key) for key in [*recipe, *measured]),
        tuple(_describe_setting(facts, key) for key in facts.config),
    )


def _describe_network(facts: RunFacts) -> list[tuple[str, str]]:
    parameters = facts.find_session_value("num_parameters")
    size = _find_input_size(facts)
    weights = facts.facts.get("weights") or facts.config.get("model.weights")
    fraction = facts.find_session_value("loaded_fraction")
    loaded = ""
    if fraction is not None and weights != "random":
        loaded = f" ({format_percent(float(fraction))} of the backbone loaded)"
    rows = [
        ("Network", get_backbone(facts)),
        ("Parameters", format_millions(int(parameters)) if parameters else ""),
        ("Input", f"{size[1]} \u00d7 {size[2]} px, {size[0]} channels" if size else ""),
        ("Weights", f"{weights or ''}{loaded}"),
        ("Licence of the weights", str(facts.find_session_value("weights_license") or "")),
        ("Classifier", _describe_head(facts)),
        ("Optimizer", str(facts.config.get("optim.name", ""))),
    ]
    rows += [
        (f"Member {number}", f"{name}, weight {weight:.3g}")
        for number, (name, weight) in enumerate(facts.members, 1)
    ]
    return [(name, value) for name, value in rows if value]


def _find_input_size(facts: RunFacts) -> Sequence[int] | None:
    """Return channels, height and width of the input; None if unknown or members differ."""
    sizes = {tuple(size) for size in facts.input_sizes}
    return sizes.pop() if len(sizes) == 1 else None


def _describe_head(facts: RunFacts) -> str:
    head = facts.card.get("head")
    if head:
        return format_setting(head)
    return str(facts.config.get("model.head", ""))


def _describe_phases(facts: RunFacts) -> list[PlanPhase]:
    phases = []
    for phase in find_phases(facts.rows):
        rates = [
            row[f"lr/{group}"]
            for row in facts.rows
            for group in phase.groups[:1]
            if phase.first_epoch <= row["epoch"] <= phase.last_epoch and f"lr/{group}" in row
        ]
        first, last = phase.first_epoch, phase.last_epoch
        phases.append(
            PlanPhase(
                f"{first}" if first == last else f"{first} to {last}",
                phase.describe(len(list_groups(facts.rows, "lr"))),
                len(phase.groups),
                _format_range(rates),
            )
        )
    return phases


def _format_range(values: list[float]) -> str:
    if not values:
        return ""
    low, high = format_scientific(min(values)), format_scientific(max(values))
    return high if low == high else f"{low} to {high}"


def _describe_setting(facts: RunFacts, key: str) -> Setting:
    value = facts.config.get(key, (facts.measured.get(key) or {}).get("value"))
    measured = facts.measured.get(key)
    reasons: Mapping[str, str] = facts.find_session_value("reasons") or {}
    return Setting(
        key,
        format_setting(value),
        reasons.get(key, "") if measured is None else f"measured: {measured.get('reason', '')}",
        key in facts.defaults and facts.defaults[key] == value,
    )
