"""What a model came to on labelled images, for a person: overall, by class, and what is missing."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

ALL_SHOWN_UP_TO = 40
NUM_WEAKEST = NUM_RAREST = 15

_TTA = "each image and its mirror image; the model's own numbers are without"
_WIDTH = 80

Stats = Mapping[str, Any]


def overall_rows(result: Mapping[str, Any]) -> dict[str, str]:
    """Return names and values of what holds for all images together.

    Args:
        result: As ``EvaluateResult.as_json`` gives it.
    """
    split = f" ({result['split'].replace('_', ' ')})" if result["split"] else ""
    rows = {"images": f"{result['num_images']}{split}"}
    if result["tta"]:
        rows["tta"] = _TTA
    rows["prior"] = result["prior"]["answers_are_for"]
    remark = {
        "accuracy": f"  (95% interval {_interval(result['accuracy_interval'])})",
        "rarest_third_recall": f"  ({_rarest(result['rarest_third'])})",
    }
    for name, value in result["metrics"].items():
        rows[name] = share(value) + remark.get(name, "")
    if result.get("without_leaks"):
        rows["without leaks"] = _without_leaks(result)
    return rows


def _without_leaks(result: Mapping[str, Any]) -> str:
    """Say what is left without the images whose copies were seen before."""
    clean = result["without_leaks"]
    count = result["num_images"] - clean["num_images"]
    return (
        f"accuracy {share(clean['metrics']['accuracy'])} (95% interval "
        f"{_interval(clean['accuracy_interval'])}); {count} images have copies that were seen "
        f"before"
    )


def class_table(result: Mapping[str, Any]) -> Table:
    """Return a row a class, the weakest first, no wider than 80 columns."""
    rows = _shown(result["per_class"])
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
            share(stats["precision"]),
            share(stats["recall"]),
            "" if stats["recall"] is None else _interval(stats["recall_interval"]),
            share(stats["f1"]),
        )
    return table


def remarks(result: Mapping[str, Any], *, table: bool = True) -> list[str]:
    """Return the lines below: numbers that are undefined, and classes that the table leaves out."""
    classes: Mapping[str, Stats] = result["per_class"]
    lines = []
    if table and len(classes) > ALL_SHOWN_UP_TO:
        shown = len(_shown(classes))
        lines.append(
            f"The {NUM_WEAKEST} classes of lowest F1 and the {NUM_RAREST} rarest; "
            f"{len(classes) - shown} of {len(classes)} are not shown. All: --json"
        )
    keys = ("precision", "recall", "f1")
    if any(stats[key] is None for stats in classes.values() for key in keys):
        lines.append(_undefined(result))
    return [part for line in lines for part in textwrap.wrap(line, _WIDTH)]


def share(value: float | None) -> str:
    """Return a number in four digits, or the word for none."""
    return "undefined" if value is None else f"{value:.4f}"


def _undefined(result: Mapping[str, Any]) -> str:
    over = result["means_are_over"]
    rarest = result["rarest_third"]["classes"]
    return (
        f"undefined: a class without images here has no recall, one that is never predicted no "
        f"precision. Means leave these out: balanced_accuracy is over "
        f"{over['balanced_accuracy']} of {len(result['per_class'])} classes, macro_f1 over "
        f"{over['macro_f1']} (present or predicted), rarest_third_recall over "
        f"{over['rarest_third_recall']} of {len(rarest)}."
    )


def _shown(classes: Mapping[str, Stats]) -> Sequence[tuple[str, Stats]]:
    """Return the classes of the table, the lowest F1 first and what has none last."""
    weakest = sorted(classes.items(), key=_by_f1)
    if len(classes) <= ALL_SHOWN_UP_TO:
        return weakest
    rarest = sorted(classes.items(), key=_by_images)[:NUM_RAREST]
    kept = {name for name, _ in [*weakest[:NUM_WEAKEST], *rarest]}
    return [(name, stats) for name, stats in weakest if name in kept]


def _by_f1(item: tuple[str, Stats]) -> float:
    f1: float | None = item[1]["f1"]
    return 2.0 if f1 is None else f1


def _by_images(item: tuple[str, Stats]) -> int:
    trained: int | None = item[1]["train_images"]
    return int(item[1]["support"]) if trained is None else trained


def _rarest(found: Mapping[str, Any]) -> str:
    """Return which classes are the rarest, a few by name."""
    names = list(found["classes"])
    text = ", ".join(names)
    if len(names) > 3 or len(text) > 40:
        text = f"{len(names)} classes" if len(names) > 1 else "1 class"
    return f"{text}; fewest {found['by']}"


def _interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{low:.3f}-{high:.3f}"
