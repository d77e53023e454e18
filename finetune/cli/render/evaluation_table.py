"""What a model came to on labelled images, for a person: overall, by class, and what is missing."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

FULL_TABLE_MAX_CLASSES = 40
NUM_WEAKEST = NUM_RAREST = 15

_TTA_REMARK = "each image and its mirror image; the model's own numbers are without"
_WIDTH = 80

Stats = Mapping[str, Any]


def build_overall_rows(result: Mapping[str, Any]) -> dict[str, str]:
    """Return names and values of what holds for all images together.

    Args:
        result: As ``EvaluateResult.as_json`` gives it.
    """
    split = f" ({result['split'].replace('_', ' ')})" if result["split"] else ""
    rows = {"images": f"{result['num_images']}{split}"}
    if result["tta"]:
        rows["tta"] = _TTA_REMARK
    rows["prior"] = result["prior"]["target_prior"]
    remark = {
        "accuracy": f"  (95% interval {_format_interval(result['accuracy_interval'])})",
        "rarest_third_recall": f"  ({_describe_rarest_third(result['rarest_third'])})",
    }
    for name, value in result["metrics"].items():
        rows[name] = format_metric(value) + remark.get(name, "")
    if result.get("without_leaks"):
        rows["without leaks"] = _describe_without_leaks(result)
    return rows


def _describe_without_leaks(result: Mapping[str, Any]) -> str:
    """Say what is left without the images whose copies were seen before."""
    clean = result["without_leaks"]
    count = result["num_images"] - clean["num_images"]
    return (
        f"accuracy {format_metric(clean['metrics']['accuracy'])} (95% interval "
        f"{_format_interval(clean['accuracy_interval'])}); {count} images have copies that were seen "
        f"before"
    )


def build_class_table(result: Mapping[str, Any]) -> Table:
    """Return a row a class, the weakest first, no wider than 80 columns."""
    rows = _select_classes(result["per_class"])
    gap = 2 if max(len(name) for name, _ in rows) <= 16 else 1
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("\nclass", overflow="fold", max_width=22)
    trained = any(stats["train_images"] is not None for stats in result["per_class"].values())
    heads = ["\nimages", "\nprecision", "\nrecall", "95% interval\nof the recall", "\nF1"]
    for head in [*(["train\nimages"] if trained else []), *heads]:
        table.add_column(head, justify="right", no_wrap=True)
    for name, stats in rows:
        table.add_row(
            escape(name),
            *([str(stats["train_images"])] if trained else []),
            str(stats["support"]),
            format_metric(stats["precision"]),
            format_metric(stats["recall"]),
            "" if stats["recall"] is None else _format_interval(stats["recall_interval"]),
            format_metric(stats["f1"]),
        )
    return table


def build_remarks(result: Mapping[str, Any], *, show_classes: bool = True) -> list[str]:
    """Return the lines below: numbers that are undefined, and classes that the table leaves out."""
    classes: Mapping[str, Stats] = result["per_class"]
    lines = []
    if show_classes and len(classes) > FULL_TABLE_MAX_CLASSES:
        shown = len(_select_classes(classes))
        lines.append(
            f"The {NUM_WEAKEST} classes of lowest F1 and the {NUM_RAREST} rarest; "
            f"{len(classes) - shown} of {len(classes)} are not shown. All: --json"
        )
    keys = ("precision", "recall", "f1")
    if any(stats[key] is None for stats in classes.values() for key in keys):
        lines.append(_explain_undefined(result))
    return [part for line in lines for part in textwrap.wrap(line, _WIDTH)]


def format_metric(value: float | None) -> str:
    """Return a number in four digits, or the word for none."""
    return "undefined" if value is None else f"{value:.4f}"


def _explain_undefined(result: Mapping[str, Any]) -> str:
    over = result["num_classes_averaged"]
    rarest = result["rarest_third"]["classes"]
    return (
        f"undefined: a class without images here has no recall, one that is never predicted no "
        f"precision. Means leave these out: balanced_accuracy is over "
        f"{over['balanced_accuracy']} of {len(result['per_class'])} classes, macro_f1 over "
        f"{over['macro_f1']} (present or predicted), rarest_third_recall over "
        f"{over['rarest_third_recall']} of {len(rarest)}."
    )


def _select_classes(classes: Mapping[str, Stats]) -> Sequence[tuple[str, Stats]]:
    """Return the classes of the table, the lowest F1 first and what has none last."""
    weakest = sorted(classes.items(), key=_get_f1_sort_key)
    if len(classes) <= FULL_TABLE_MAX_CLASSES:
        return weakest
    rarest = sorted(classes.items(), key=_get_count_sort_key)[:NUM_RAREST]
    kept = {name for name, _ in [*weakest[:NUM_WEAKEST], *rarest]}
    return [(name, stats) for name, stats in weakest if name in kept]


def _get_f1_sort_key(item: tuple[str, Stats]) -> float:
    f1: float | None = item[1]["f1"]
    return 2.0 if f1 is None else f1


def _get_count_sort_key(item: tuple[str, Stats]) -> int:
    trained: int | None = item[1]["train_images"]
    return int(item[1]["support"]) if trained is None else trained


def _describe_rarest_third(rarest_third: Mapping[str, Any]) -> str:
    """Return which classes are the rarest, a few by name."""
    names = list(rarest_third["classes"])
    text = ", ".join(names)
    if len(names) > 3 or len(text) > 40:
        text = f"{len(names)} classes" if len(names) > 1 else "1 class"
    return f"{text}; fewest {rarest_third['by']}"


def _format_interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{low:.3f}-{high:.3f}"
