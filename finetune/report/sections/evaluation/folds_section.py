"""Section on the folds of a cross-validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.report.number_formats import format_interval, format_metric, format_metric_name
from finetune.report.run_facts import RunFacts

_NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "loss")
_LABEL_NAMES = ("mean_average_precision", "macro_f1", "loss")
"""Metrics of a fold on multi-label images."""


@dataclass(frozen=True, slots=True)
class FoldsSection:
    """Folds of a cross-validation.

    Attributes:
        columns: Header.
        rows: A row of text for each fold.
        summary: Metric, mean, standard deviation and interval over folds.
        test_summary: The same of the test images, without an interval.
        method: How the intervals are computed.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    summary: tuple[tuple[str, str, str, str], ...]
    test_summary: tuple[tuple[str, str, str, str], ...]
    method: str


def build_folds(facts: RunFacts) -> FoldsSection | None:
    """Return the folds of a cross-validation; None for another run."""
    tree = facts.folds
    if not isinstance(tree, Mapping) or not tree.get("folds"):
        return None
    shown = _LABEL_NAMES if facts.is_multi_label else _NAMES
    names = [name for name in shown if name in (tree.get("metrics") or {})]
    rows = tuple(_describe_fold(fold, names) for fold in tree["folds"])
    columns = ("fold", "train", "held out", *map(format_metric_name, names), "kept", "temperature")
    return FoldsSection(
        columns,
        rows,
        _summarise(tree.get("metrics")),
        _summarise(tree.get("test_metrics")),
        str(tree.get("method", "")),
    )


def _describe_fold(fold: Mapping[str, Any], names: list[str]) -> tuple[str, ...]:
    metrics = fold["metrics"]["val"]
    kept = fold.get("kept") or {}
    position, epoch = kept.get("position"), kept.get("epoch")
    if epoch == 0 or position == 0:
        weights = "linear probe"
    elif position is None:
        weights = f"epoch {epoch}"
    else:
        weights = f"{position:g} of the way to epoch {epoch}"
    return (
        str(fold["fold"]),
        f"{fold['num_train']:,}",
        f"{fold['num_val']:,}",
        *(format_metric(metrics.get(name), name) for name in names),
        weights,
        f"{fold.get('temperature', 1.0):.3g}",
    )


def _summarise(metrics: Mapping[str, Any] | None) -> tuple[tuple[str, str, str, str], ...]:
    return tuple(
        (
            format_metric_name(name),
            format_metric(entry["mean"], name),
            format_metric(entry["std"], name),
            format_interval(entry["interval"], name),
        )
        for name, entry in (metrics or {}).items()
    )
