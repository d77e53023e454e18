"""Sections on which runs are compared, and how their settings differ."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.report.number_formats import (
    format_interval,
    format_metric,
    format_metric_name,
    format_setting,
)
from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import (
    find_interval,
    get_backbone,
    get_evaluation,
    get_metrics,
    name_split,
)

_OWN_KEYS = ("output", "resume", "report.", "tracking.", "cache.")
"""Keys, and sections ending in a dot, that say nothing of what a run learns."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """Run of a comparison as text: a cell for each split, value and interval."""

    label: str
    path: str
    network: str
    epochs: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RunsSection:
    """Runs that are compared.

    Attributes:
        metric: Name of the metric of the cells.
        splits: Name of the split of each cell.
        runs: Runs in the order in which they were given.
    """

    metric: str
    splits: tuple[str, ...]
    runs: tuple[RunRow, ...]


@dataclass(frozen=True, slots=True)
class DifferencesSection:
    """Settings that differ.

    Attributes:
        labels: Label of each run.
        rows: Dotted key with the value of each run.
        num_equal: Number of settings that all runs share.
        num_uncompared: Number of settings that say nothing of what a run learns.
        missing: Labels of bundles, which have no config.
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    num_equal: int
    num_uncompared: int
    missing: tuple[str, ...]


def label_runs(runs: Sequence[RunFacts]) -> tuple[str, ...]:
    """Return a short label of each run: its name, or its path where names are the same."""
    names = [run.name for run in runs]
    labels = [
        name if names.count(name) == 1 else run.path for name, run in zip(names, runs, strict=True)
    ]
    return tuple(
        label if labels.count(label) == 1 else f"{label} ({number})"
        for number, label in enumerate(labels, 1)
    )


def build_runs(runs: Sequence[RunFacts]) -> RunsSection:
    """Return the runs with the metric that the first of them is judged by."""
    metric = runs[0].monitor
    splits = tuple(
        split
        for split in ("test", "out_of_fold", "val")
        if any(split in get_metrics(run) for run in runs)
    )
    rows = []
    for label, run in zip(label_runs(runs), runs, strict=True):
        cells = tuple(_describe_split(run, split, metric) for split in splits)
        epochs = max((int(row["epoch"]) for row in run.rows), default=None)
        rows.append(
            RunRow(label, run.path, get_backbone(run), "" if epochs is None else str(epochs), cells)
        )
    return RunsSection(
        format_metric_name(metric), tuple(name_split(split) for split in splits), tuple(rows)
    )


def _describe_split(run: RunFacts, split: str, metric: str) -> tuple[str, str]:
    metrics = get_metrics(run).get(split)
    if metrics is None:
        return "\u2013", ""
    number = get_evaluation(run, split).get("num_images")
    interval = find_interval(run, split, metric)
    parts = ([] if interval is None else [format_interval(interval, metric)]) + (
        [f"{number:,} images"] if number else []
    )
    return format_metric(metrics.get(metric), metric), ", ".join(parts)


def build_differences(runs: Sequence[RunFacts]) -> DifferencesSection:
    """Return the settings that differ between runs."""
    labels = label_runs(runs)
    known = [run for run in runs if run.config]
    keys = dict.fromkeys(key for run in known for key in run.config)
    num_keys = len(keys)
    keys = {key: None for key in keys if not f"{key}.".startswith(_OWN_KEYS)}
    rows = []
    for key in keys:
        values = [format_setting(run.config[key]) if key in run.config else "" for run in known]
        if len(set(values)) > 1:
            rows.append((key, tuple(values)))
    return DifferencesSection(
        tuple(label for label, run in zip(labels, runs, strict=True) if run.config),
        tuple(rows),
        len(keys) - len(rows),
        num_keys - len(keys),
        tuple(label for label, run in zip(labels, runs, strict=True) if not run.config),
    )
