"""Section on the metrics: values with intervals, and the effect of the class prior."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bundle.validation_choices import describe_validation_choices
from finetune.evaluation.priors import build_uniform_prior, compute_logit_shift, is_same_prior
from finetune.report.number_formats import format_interval, format_metric, format_metric_name
from finetune.report.run_facts import RunFacts, SplitPredictions
from finetune.report.sections.headline import (
    OUT_OF_FOLD,
    choose_main_split,
    find_interval,
    get_evaluation,
    get_metrics,
    name_split,
)
from finetune.report.split_metrics import measure_split, shift_probabilities
from finetune.units import format_percent

MIN_IMBALANCE_RATIO = 1.5
"""Training images of the largest class per image of the smallest from which sides are shown."""


@dataclass(frozen=True, slots=True)
class MetricCell:
    """Value of a metric with its interval, as text."""

    value: str
    interval: str


@dataclass(frozen=True, slots=True)
class MetricTable:
    """Metrics by split.

    Attributes:
        splits: Name of each split.
        num_images: Number of its images; empty where it is unknown.
        rows: Name of each metric with a cell for each split.
    """

    splits: tuple[str, ...]
    num_images: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MetricCell, ...]], ...]


@dataclass(frozen=True, slots=True)
class ImbalanceSides:
    """Metrics for different class priors.

    Attributes:
        split: Name of the split.
        columns: Class prior of each column.
        shipped: Number of the column that the bundle gives, from 0.
        rows: Name of each metric with a value for each column.
    """

    split: str
    columns: tuple[str, ...]
    shipped: int
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class MetricsSection:
    """Metrics of a model.

    Attributes:
        table: Metrics by split.
        sides: Metrics for different class priors; None for balanced classes.
        has_folds: Whether there are metrics of the held-out images of folds.
        choices: Sentence on what validation images chose of the model; empty if that is nothing, or
            there are no metrics of them.
    """

    table: MetricTable
    sides: ImbalanceSides | None
    has_folds: bool
    choices: str = ""

    @property
    def has_intervals(self) -> bool:
        """Whether any metric has an interval."""
        return any(cell.interval for _, cells in self.table.rows for cell in cells)


def build_metrics(facts: RunFacts) -> MetricsSection | None:
    """Return the metrics of a model; None before its evaluation."""
    metrics = get_metrics(facts)
    if not metrics:
        return None
    splits = list(metrics)
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    table = MetricTable(
        tuple(name_split(split).capitalize() for split in splits),
        tuple(
            f"{number:,}" if (number := get_evaluation(facts, split).get("num_images")) else ""
            for split in splits
        ),
        tuple(
            (
                format_metric_name(name),
                tuple(
                    MetricCell(
                        format_metric(metrics[split].get(name), name),
                        "" if interval is None else format_interval(interval, name),
                    )
                    for split in splits
                    for interval in [find_interval(facts, split, name)]
                ),
            )
            for name in names
        ),
    )
    has_folds = OUT_OF_FOLD in metrics
    return MetricsSection(table, _build_sides(facts), has_folds, _describe_choices(facts, metrics))


def _describe_choices(facts: RunFacts, metrics: Mapping[str, Any]) -> str:
    """Return the sentence on what validation images, or held-out ones of folds, chose."""
    if OUT_OF_FOLD in metrics:
        folds = (facts.folds or {}).get("folds") or ()
        chosen = dict.fromkeys(
            text for fold in folds for text in fold.get("validation_choices") or ()
        )
        return describe_validation_choices(chosen, has_folds=True)
    return describe_validation_choices(
        facts.facts.get("validation_choices") or () if "val" in metrics else ()
    )


def _build_sides(facts: RunFacts) -> ImbalanceSides | None:
    """Return the metrics without and with an adjustment to balanced classes."""
    priors, split = facts.card.get("priors"), choose_main_split(facts)
    predictions = facts.predictions.get(split or "")
    counts = [int(count) for count in facts.class_counts.get("train", ())]
    if priors is None or predictions is None or predictions.target.ndim == 2:
        return None
    if not counts or min(counts) == 0 or max(counts) < MIN_IMBALANCE_RATIO * min(counts):
        return None
    model, target = tuple(priors["model"]), priors["target"]
    uniform = build_uniform_prior(len(model))
    if min(model) <= 0 or is_same_prior(model, uniform):
        return None
    # what the bundle's probabilities assume, from which the other columns follow
    effective = model if target is None else tuple(target)
    columns = {"Class prior of the network": model, "Balanced classes": uniform}
    if target is not None and not is_same_prior(effective, uniform):
        columns["Target prior of the bundle"] = effective
    tables = [
        shift_probabilities(predictions.probabilities, np.array(compute_logit_shift(to, effective)))
        for to in columns.values()
    ]
    shipped = next(
        number for number, prior in enumerate(columns.values()) if is_same_prior(prior, effective)
    )
    return ImbalanceSides(
        name_split(split or ""), tuple(columns), shipped, _compare(predictions, tables, counts)
    )


def _compare(
    predictions: SplitPredictions, tables: Sequence[NDArray[np.float64]], counts: Sequence[int]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return a row of text for each metric, with a value for each table of probabilities."""
    measured = [
        measure_split(
            SplitPredictions(
                predictions.paths,
                predictions.digests,
                predictions.groups,
                predictions.target,
                table,
            )
        )
        for table in tables
    ]
    rows = [
        (format_metric_name(name), tuple(format_metric(m.values[name], name) for m in measured))
        for name in ("accuracy", "balanced_accuracy", "macro_f1")
    ]
    order = np.argsort(counts, kind="stable")
    third = max(1, len(order) // 3)
    for name, chosen in (
        ("Recall of the commonest third", order[-third:]),
        ("Recall of the rarest third", order[:third]),
    ):
        recalls = [m.recalls[chosen] for m in measured]
        if all(np.isfinite(one).any() for one in recalls):
            rows.append((name, tuple(format_percent(float(np.nanmean(one))) for one in recalls)))
    return tuple(rows)
