"""Rules on the layers, after training beside before: what a network came with accuses no one."""

from collections.abc import Callable
from statistics import median

from finetune.diagnosis.certainty import CONFIDENCE, compute_difference_interval
from finetune.diagnosis.evidence import LayerHealth, LayerWeights, NetworkEvidence, RunEvidence
from finetune.diagnosis.finding import Finding, Severity
from finetune.diagnosis.rules.learning_rules import MIN_LEARNED
from finetune.diagnosis.scores import get_train_score
from finetune.diagnosis.suggestions import suggest_rate
from finetune.evaluation.significance import compute_wilson_interval
from finetune.lookup import is_import_path
from finetune.units import format_percent, format_scientific

MIN_LOST_UNITS = 0.1
"""Fraction of a layer's units that must have died, or saturated, in training.

A tenth of the layer does nothing any more. It is compared with the lower end of the interval of the
difference, so that a layer of few units needs more.
"""

MIN_CORRELATED = 0.5
"""Fraction of pairs of feature maps with a correlation above 0.9: most maps show the same."""

ROUNDING = 1e-6
"""Relative change below which weights did not move: some roundings of float32."""

VANISHING, EXPLODING = 1e-4, 1e4
"""Gradient relative to the weights, divided by the median of the layers, that is far from it.

Layers of pretrained networks lie within a factor of some hundred of their median.
"""

LEAST_EXPLODED = 1.0
"""Gradient relative to the weights below which it is not large in itself.

Branches whose output is scaled by a tiny number at first, as those of a new ConvNeXt (1e-6), have
tiny gradients, and the layers outside of them ordinary ones.
"""


def find_dead_units(evidence: RunEvidence) -> Finding | None:
    """Find a layer of which units died in training: zero for all images."""
    return _find_lost_units(
        evidence,
        rule="dead_units",
        measure=lambda layer: layer.dead,
        title="Dead units in",
        state="are zero for all images",
    )


def find_saturated_units(evidence: RunEvidence) -> Finding | None:
    """Find a layer of which units saturated in training: at the flat end of their activation."""
    return _find_lost_units(
        evidence,
        rule="saturated_units",
        measure=lambda layer: layer.saturated,
        title="Saturated units in",
        state="are at the flat end of their activation",
    )


def _find_lost_units(
    evidence: RunEvidence,
    *,
    rule: str,
    measure: Callable[[LayerHealth], float | None],
    title: str,
    state: str,
) -> Finding | None:
    """Find the layer that lost most units in training by a measure in [0, 1]."""
    network = evidence.network
    found: list[tuple[float, LayerHealth, float, float]] = []
    for before, after in _pair_layers(network):
        start, end, units = measure(before), measure(after), after.units
        if start is None or end is None or not units:
            continue
        low = compute_difference_interval(round(end * units), units, round(start * units), units)[0]
        if low > MIN_LOST_UNITS:
            found.append((low, after, start, end))
    if not found:
        return None
    _, layer, start, end = max(found, key=lambda entry: entry[0])
    others = f", and so do {len(found) - 1} more layers" if len(found) > 1 else ""
    is_most = end - start > MIN_CORRELATED
    severity: Severity = "problem" if is_most else "warning"
    if _is_learned(evidence):
        severity = "warning" if is_most else "info"
    sample = "" if network is None or not network.num_images else f"{network.num_images} "
    state = state.replace("all images", f"all {sample}images of the sample")
    is_fault = severity != "info"
    return Finding(
        rule=rule,
        severity=severity,
        title=f"{title} {layer.name}",
        sentence=(
            f"{format_percent(end)} of {layer.units:,} units of {layer.name} {state}; before "
            f"training it was {format_percent(start)}{others}."
        ),
        numbers={
            "layer": layer.name,
            "units": layer.units or 0,
            "before": start,
            "after": end,
            "layers": len(found),
        },
        remedy="Steps that are too large do this. Lower the learning rate:" if is_fault else "",
        option=suggest_rate(evidence, 0.3) if is_fault else "",
    )


def _is_learned(evidence: RunEvidence) -> bool:
    """Return whether the training images are learned.

    Units that died hinder learning (Lu et al. 2020, https://arxiv.org/abs/1903.06733). In a network
    that has learned its images, units that are zero for all of a small sample have rather become
    selective: one for a class of ten is zero for nine of ten images.
    """
    row = evidence.curves.best_row
    score = None if row is None else get_train_score(evidence, row)
    if score is None:
        return False
    high = compute_wilson_interval(score.num_correct, score.count, confidence=CONFIDENCE)[1]
    return high >= MIN_LEARNED


def find_correlated_maps(evidence: RunEvidence) -> Finding | None:
    """Find a layer most of whose feature maps became alike in training."""
    found = [
        (before, after)
        for before, after in _pair_layers(evidence.network)
        if before.correlated_pairs is not None
        and after.correlated_pairs is not None
        and before.correlated_pairs < MIN_CORRELATED <= after.correlated_pairs
    ]
    if not found:
        return None
    before, after = max(found, key=lambda pair: pair[1].correlated_pairs or 0.0)
    start, end = before.correlated_pairs or 0.0, after.correlated_pairs or 0.0
    return Finding(
        rule="correlated_maps",
        severity="warning",
        title=f"Feature maps of {after.name} became alike",
        sentence=(
            f"{format_percent(end)} of the pairs of feature maps of {after.name} have a "
            f"correlation above 0.9; before training it was {format_percent(start)}. Maps that "
            f"show the same carry little."
        ),
        numbers={"layer": after.name, "before": start, "after": end, "layers": len(found)},
        remedy="Steps that are too large do this. Lower the learning rate:",
        option=suggest_rate(evidence, 0.3),
    )


def _pair_layers(network: NetworkEvidence | None) -> list[tuple[LayerHealth, LayerHealth]]:
    """Return each layer before and after training."""
    if network is None:
        return []
    before = {layer.name: layer for layer in network.before}
    return [(before[layer.name], layer) for layer in network.after if layer.name in before]


def find_unmoved_layers(evidence: RunEvidence) -> Finding | None:
    """Find layers whose weights did not move although their groups trained and others moved."""
    network, best = evidence.network, evidence.curves.best_epoch
    if network is None or not best:
        return None
    # groups that trained before the model was kept
    trained = frozenset[str]().union(
        *(row.trained_groups for row in evidence.curves.epochs if row.epoch <= best)
    )
    layers = [
        layer
        for layer in network.weights
        if layer.group in trained and layer.relative_change is not None
    ]
    unmoved = [layer for layer in layers if (layer.relative_change or 0.0) < ROUNDING]
    if not unmoved or len(unmoved) == len(layers):
        return None
    largest = max(layers, key=lambda layer: layer.relative_change or 0.0)
    return Finding(
        rule="unmoved_layers",
        severity="warning",
        title=f"Weights did not move: {_name_layers(unmoved)}",
        sentence=(
            f"{len(unmoved)} of {len(layers)} layers that trained changed by less than "
            f"{format_scientific(ROUNDING)} of their size, such as {unmoved[0].name}; "
            f"{largest.name} changed by {format_scientific(largest.relative_change or 0.0)}."
        ),
        numbers={
            "unmoved": len(unmoved),
            "layers": len(layers),
            "first": unmoved[0].name,
            "largest_change": largest.relative_change or 0.0,
        },
        remedy="Raise the learning rate of the layers far from the head:",
        option="optim.layer_decay=1",
    )


def find_vanishing_gradients(evidence: RunEvidence) -> Finding | None:
    """Find layers whose gradients are far smaller than those of the others."""
    layers, typical = _measure_gradients(evidence)
    weak = [one for one in layers if (one.relative_gradient or 0.0) < VANISHING * typical]
    if not weak:
        return None
    least = min(weak, key=lambda layer: layer.relative_gradient or 0.0)
    return Finding(
        rule="vanishing_gradients",
        severity="warning",
        title=f"Gradients vanish: {_name_layers(weak)}",
        sentence=(
            f"The gradient of {least.name} is "
            f"{format_scientific(least.relative_gradient or 0.0)} of its weights, the median of "
            f"{len(layers)} layers {format_scientific(typical)}."
        ),
        numbers={
            "layers": len(weak),
            "first": least.name,
            "smallest": least.relative_gradient or 0.0,
            "median": typical,
        },
        **_suggest_gradients(evidence),
    )


def _suggest_gradients(evidence: RunEvidence) -> dict[str, str]:
    """Return what gives layers gradients that the run does not have already."""
    if evidence.settings.get("model.batch_norm") not in ("train", "sync"):
        return {
            "remedy": "Layers of such a network learn only with BatchNorm that adapts:",
            "option": "model.batch_norm=train",
        }
    is_own = is_import_path(str(evidence.settings.get("model.backbone")))
    if evidence.settings.get("model.weights") == "random" and not is_own:
        return {
            "remedy": "From random weights such layers hardly learn. Begin with pretrained ones:",
            "option": "model.weights=hub",
        }
    return {"remedy": "Choose a network with shortcut connections, such as a ResNet.", "option": ""}


def find_exploding_gradients(evidence: RunEvidence) -> Finding | None:
    """Find layers whose gradients are far larger than those of the others."""
    layers, typical = _measure_gradients(evidence)
    limit = max(EXPLODING * typical, LEAST_EXPLODED)
    strong = [one for one in layers if (one.relative_gradient or 0.0) > limit]
    if not strong:
        return None
    most = max(strong, key=lambda layer: layer.relative_gradient or 0.0)
    return Finding(
        rule="exploding_gradients",
        severity="warning",
        title=f"Gradients explode: {_name_layers(strong)}",
        sentence=(
            f"The gradient of {most.name} is {format_scientific(most.relative_gradient or 0.0)} of "
            f"its weights, the median of {len(layers)} layers {format_scientific(typical)}."
        ),
        numbers={
            "layers": len(strong),
            "first": most.name,
            "largest": most.relative_gradient or 0.0,
            "median": typical,
        },
        remedy="Lower the learning rate:",
        option=suggest_rate(evidence, 0.3),
    )


def _measure_gradients(evidence: RunEvidence) -> tuple[list[LayerWeights], float]:
    """Return the layers with a gradient of a group that trained, and their median; 0 if none."""
    network = evidence.network
    if network is None:
        return [], 0.0
    trained = frozenset[str]().union(*(row.trained_groups for row in evidence.curves.epochs))
    # a head that began with zeros has no relative change, and any gradient is large beside it
    has_changes = any(layer.relative_change is not None for layer in network.weights)
    layers = [
        layer
        for layer in network.weights
        if layer.relative_gradient is not None
        and layer.group in trained
        and not (has_changes and layer.relative_change is None)
    ]
    values = [layer.relative_gradient or 0.0 for layer in layers]
    return layers, median(values) if values else 0.0


def _name_layers(layers: list[LayerWeights]) -> str:
    return layers[0].name if len(layers) == 1 else f"{layers[0].name} and {len(layers) - 1} more"
