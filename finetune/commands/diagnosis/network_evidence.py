"""Evidence of the layers from the content of ``network.json``."""

from collections.abc import Iterable, Mapping
from typing import Any

from finetune.diagnosis.evidence import LayerHealth, LayerWeights, NetworkEvidence


def parse_network(tree: Mapping[str, Any]) -> NetworkEvidence:
    """Return the layers before and after training; numbers that are missing are None."""
    gradients = {row["name"]: row for row in _list_rows(tree, "gradients")}
    weights = {row["name"]: row for row in _list_rows(tree, "weights")}
    return NetworkEvidence(
        before=_parse_layers(tree.get("before")),
        after=_parse_layers(tree.get("after")),
        weights=tuple(
            LayerWeights(
                name=name,
                group=str((weights.get(name) or gradients[name]).get("group", "")),
                relative_change=_get_number(weights.get(name), "relative_change"),
                relative_gradient=_get_number(gradients.get(name), "relative_norm"),
            )
            for name in {**weights, **gradients}
        ),
        num_images=tree.get("num_images"),
    )


def _list_rows(tree: Mapping[str, Any], key: str) -> Iterable[Mapping[str, Any]]:
    rows = tree.get(key) or ()
    return [row for row in rows if isinstance(row, Mapping) and "name" in row]


def _parse_layers(tree: Any) -> tuple[LayerHealth, ...]:
    if not isinstance(tree, Mapping):
        return ()
    return tuple(
        LayerHealth(
            name=str(row["name"]),
            units=row.get("units"),
            dead=_get_number(row, "dead"),
            saturated=_get_number(row, "saturated"),
            correlated_pairs=_get_number(row, "correlated_pairs"),
            std=_get_number(row, "std"),
        )
        for row in _list_rows(tree, "layers")
    )


def _get_number(row: Mapping[str, Any] | None, key: str) -> float | None:
    value = None if row is None else row.get(key)
    return float(value) if isinstance(value, int | float) else None
