"""Section on the classes, or the labels: a sortable table for each split."""

from dataclasses import dataclass

from finetune.evaluation.fold_statistics import OTHER_FOLDS, THRESHOLDS_KEY
from finetune.report.number_formats import format_interval
from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import (
    choose_main_split,
    get_evaluation,
    get_metrics,
    name_split,
)
from finetune.units import UNDEFINED, format_percent

_COLUMNS = (
    ("train_images", "Train images"),
    ("support", "Images"),
    ("num_predicted", "Predicted"),
    ("threshold", "Threshold"),
    ("average_precision", "Average precision"),
    ("precision", "Precision"),
    ("recall", "Recall"),
    ("f1", "F1"),
)
"""Key of the evaluation and header, in their order; those that no class has are left out."""

_FOLDS_NOTE = (
    "Predicted images, precision, recall and F1 of each fold are at thresholds chosen on the other "
    "folds. The thresholds listed are those of the model, chosen on all held-out images."
)

_COUNTS = ("train_images", "support", "num_predicted")


@dataclass(frozen=True, slots=True)
class TableCell:
    """Cell of a table: text, value that it is sorted by, and a remark."""

    text: str
    key: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Table of the classes of a split, with a note on it; empty without one."""

    split: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[TableCell, ...]], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class ClassSection:
    """Tables of the classes, that of the main split first."""

    noun: str
    tables: tuple[ClassTable, ...]


def build_classes(facts: RunFacts) -> ClassSection | None:
    """Return the tables of the classes of each split; None without an evaluation."""
    main = choose_main_split(facts)
    splits = sorted(get_metrics(facts), key=lambda split: split != main)
    tables = [_build_table(facts, split) for split in splits]
    known = tuple(table for table in tables if table is not None)
    return ClassSection("label" if facts.is_multi_label else "class", known) if known else None


def _build_table(facts: RunFacts, split: str) -> ClassTable | None:
    evaluation = get_evaluation(facts, split)
    stats = evaluation.get("per_class") or evaluation.get("per_label")
    if not stats:
        return None
    columns = [
        (key, header)
        for key, header in _COLUMNS
        if any(entry.get(key) is not None for entry in stats.values())
    ]
    rows = tuple(
        (
            name,
            tuple(
                _build_cell(
                    key,
                    entry.get(key),
                    entry.get("recall_interval") if key == "recall" else None,
                )
                for key, _ in columns
            ),
        )
        for name, entry in stats.items()
    )
    note = _FOLDS_NOTE if evaluation.get(THRESHOLDS_KEY) == OTHER_FOLDS else ""
    return ClassTable(name_split(split), tuple(header for _, header in columns), rows, note)


def _build_cell(key: str, value: float | None, interval: list[float] | None) -> TableCell:
    if value is None:
        return TableCell(UNDEFINED, "")
    if key in _COUNTS:
        return TableCell(f"{int(value):,}", str(int(value)))
    if key == "threshold":
        return TableCell(f"{value:.3f}", f"{value:.6f}")
    remark = "" if interval is None else format_interval(interval, "recall")
    return TableCell(format_percent(value), f"{value:.6f}", remark)
