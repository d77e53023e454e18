"""Section on the health of the network: its layers before and after training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.report.kept_weights import is_probe_kept
from finetune.report.run_facts import RunFacts


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """Statistics of a layer, before and after training; None where they are unknown.

    Attributes:
        name: Layer.
        kind: Kind of layer.
        units: Number of its units.
        dead: Fraction of units that are zero for all images, before and after.
        saturated: Fraction of units at the flat end of their activation, before and after.
        correlation: Mean absolute correlation of feature maps, before and after.
        deviation: Standard deviation of the activations, before and after.
    """

    name: str
    kind: str
    units: int | None
    dead: tuple[float | None, float | None]
    saturated: tuple[float | None, float | None]
    correlation: tuple[float | None, float | None]
    deviation: tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class ChangeEntry:
    """Change of the weights of a layer, and its gradient; None where they are unknown."""

    name: str
    group: str
    change: float | None
    gradient: float | None


@dataclass(frozen=True, slots=True)
class NetworkSection:
    """Health of a network.

    Attributes:
        num_images: Images that it was measured on; None if unknown.
        layers: Statistics of the layers.
        changes: Change and gradient of the weights, by layer.
        largest_change: Largest relative change, for the length of bars.
        has_two_states: Whether the layers were trained, so that before and after are shown.
        remark: Sentence on the states that are shown.
    """

    num_images: int | None
    layers: tuple[LayerEntry, ...]
    changes: tuple[ChangeEntry, ...]
    largest_change: float
    has_two_states: bool
    remark: str


def build_network_section(facts: RunFacts) -> NetworkSection | None:
    """Return the statistics of the network; None without any."""
    tree = facts.network
    if not isinstance(tree, Mapping):
        return None
    states = (tree.get(key) for key in _STATES)
    before, after = (
        _index_layers(state.get("layers") if isinstance(state, Mapping) else None)
        for state in states
    )
    has_two_states = bool(before and after) and not is_probe_kept(facts)
    layers = [_pair(name, before.get(name), after.get(name)) for name in {**after, **before}]
    gradients = _index_layers(tree.get("gradients"))
    weights = _index_layers(tree.get("weights"))
    changes = [
        ChangeEntry(
            name,
            str((weights.get(name) or gradients[name]).get("group", "")),
            _get_number(weights.get(name), "relative_change") if has_two_states else None,
            _get_number(gradients.get(name), "relative_norm"),
        )
        for name in {**weights, **gradients}
    ]
    if not layers and not changes:
        return None
    largest = max((entry.change or 0.0 for entry in changes), default=0.0)
    num_images = _get_number(tree, "num_images")
    return NetworkSection(
        None if num_images is None else int(num_images),
        tuple(layers),
        tuple(changes),
        largest or 1.0,
        has_two_states,
        _describe_states(facts, has_two_states=has_two_states),
    )


def _describe_states(facts: RunFacts, *, has_two_states: bool) -> str:
    if has_two_states:
        return "In the bars, before is grey and after is blue."
    if is_probe_kept(facts):
        return (
            "The model is the linear probe: its layers are those of the weights that the run began "
            "with, and are shown once."
        )
    return "One state was measured."


_STATES = ("before", "after")


def _index_layers(layers: Any) -> dict[str, Mapping[str, Any]]:
    """Return the entries by name; those of a damaged file are left out."""
    known = layers if isinstance(layers, Sequence) else ()
    return {str(one["name"]): one for one in known if isinstance(one, Mapping) and "name" in one}


def _pair(
    name: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> LayerEntry:
    known = after or before or {}

    def get(key: str) -> tuple[float | None, float | None]:
        return _get_number(before, key), _get_number(after, key)

    return LayerEntry(
        name,
        str(known.get("kind", "")),
        None if (units := _get_number(known, "units")) is None else int(units),
        get("dead"),
        get("saturated"),
        get("mean_abs_correlation"),
        get("std"),
    )


def _get_number(layer: Mapping[str, Any] | None, key: str) -> float | None:
    value = None if layer is None else layer.get(key)
    return float(value) if isinstance(value, int | float) else None
