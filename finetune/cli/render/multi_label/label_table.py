"""Tables of the evaluation of a multi-label model: overall metrics, metrics per label, remarks."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from finetune.evaluation.fold_statistics import OTHER_FOLDS, THRESHOLDS_KEY
from finetune.units import UNDEFINED, format_count, format_defined_percent, format_percent

FULL_TABLE_MAX_LABELS = 40
NUM_LOWEST = 30

_WIDTH = 80

Stats = Mapping[str, Any]


def describe_label_metrics(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the name and the text of each metric over all images.

    Args:
        result: Evaluation as ``EvaluateResult.to_json`` returns it.
    """
    rows = {}
    for name, value in result["metrics"].items():
        rows[name] = UNDEFINED if value is None else _format_metric(name, value)
    if clean := result.get("without_leaks"):
        num_leaked = result["num_images"] - clean["num_images"]
        value = format_defined_percent(clean["metrics"]["mean_average_precision"])
        rows["without leaks"] = (
            f"mean_average_precision {value}; {format_count(num_leaked, 'leaked image')} left out"
        )
    return rows


def build_label_table(result: Mapping[str, Any]) -> Table:
    """Return a table with one row per label, lowest average precision first, 80 columns wide."""
    rows = _select_labels(result["per_label"])
    gap = 2 if max(len(name) for name, _ in rows) <= 16 else 1
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("\nlabel", overflow="fold", max_width=20)
    has_train_counts = any(s["train_images"] is not None for _, s in rows)
    headers = ["\nimages", "average\nprecision", "thres-\nhold", "\nprecision", "\nrecall", "\nF1"]
    for header in [*(["train\nimages"] if has_train_counts else []), *headers]:
        table.add_column(header, justify="right", no_wrap=True)
    for name, stats in rows:
        table.add_row(
            escape(name),
            *([str(stats["train_images"])] if has_train_counts else []),
            str(stats["support"]),
            format_defined_percent(stats["average_precision"]),
            f"{stats['threshold']:.2f}",
            format_defined_percent(stats["precision"]),
            format_defined_percent(stats["recall"]),
            format_defined_percent(stats["f1"]),
        )
    return table


def build_label_remarks(result: Mapping[str, Any], *, show_labels: bool = True) -> list[str]:
    """Return the lines below the tables, on undefined metrics and on labels that are not shown."""
    labels: Mapping[str, Stats] = result["per_label"]
    remarks = []
    if show_labels and len(labels) > FULL_TABLE_MAX_LABELS:
        remarks.append(
            f"The table shows the {NUM_LOWEST} labels with the lowest average precision of "
            f"{len(labels)}. --json lists all labels."
        )
    averaged = result["num_labels_averaged"]
    if any(stats["average_precision"] is None for stats in labels.values()):
        remarks.append(
            f"{UNDEFINED}: average precision and recall need images with the label, precision "
            f"needs predictions of it. Averages leave undefined values out: mean_average_precision "
            f"is over {averaged['mean_average_precision']} of {len(labels)} labels, macro_f1 over "
            f"{averaged['macro_f1']} (present or predicted)."
        )
    if show_labels:
        remarks.append(
            "F1, precision and recall of each fold are at thresholds chosen on the other folds. "
            "The thresholds listed are those of the model, chosen on all held-out images."
            if result.get(THRESHOLDS_KEY) == OTHER_FOLDS
            else "F1, precision and recall are those at the thresholds of the model, which were "
            "chosen on validation images (of a cross-validation: on the images that folds hold "
            "out)."
        )
    return [line for remark in remarks for line in textwrap.wrap(remark, _WIDTH)]


def describe_label_statistics(labels: Mapping[str, Any] | None) -> list[str]:
    """Return the lines on the number of labels of an image and on pairs; none for one class each.

    Args:
        labels: Values of ``LabelStatistics.to_json``; None for images of one class.
    """
    if labels is None:
        return []
    unlabelled = format_count(labels["num_unlabelled"], "image")
    lines = [
        f"multi-label: {labels['labels_per_image']:.3g} labels per image; {unlabelled} without any"
    ]
    pairs = ", ".join(
        f"{' + '.join(pair['labels'])} {pair['num_images']:,}" for pair in labels["frequent_pairs"]
    )
    if pairs:
        lines += textwrap.wrap(f"frequent pairs: {pairs}", _WIDTH, subsequent_indent="  ")
    return lines


def _select_labels(labels: Mapping[str, Stats]) -> Sequence[tuple[str, Stats]]:
    """Return the labels of the table, lowest average precision first, undefined ones last."""
    ordered = sorted(labels.items(), key=lambda item: _sort_key(item[1]["average_precision"]))
    return ordered if len(labels) <= FULL_TABLE_MAX_LABELS else ordered[:NUM_LOWEST]


def _sort_key(value: float | None) -> float:
    return 2.0 if value is None else value


def _format_metric(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "loss" else format_percent(value)
