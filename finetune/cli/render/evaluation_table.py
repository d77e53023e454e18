"""Tables of an evaluation: overall metrics, metrics per class, and remarks."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from finetune.bundle.validation_choices import describe_validation_choices
from finetune.cli.render.multi_label.label_table import (
    build_label_remarks,
    build_label_table,
    describe_label_metrics,
)
from finetune.inference.tta import describe_tta, parse_tta
from finetune.units import UNDEFINED, format_count, format_defined_percent, format_percent

FULL_TABLE_MAX_CLASSES = 40
NUM_WEAKEST = NUM_RAREST = 15

_RANKED_BY = {"train_images": "fewest training images", "eval_images": "fewest images here"}
_WIDTH = 80

Stats = Mapping[str, Any]


def build_overall_rows(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the name and the text of each metric over all images.

    Args:
        result: Evaluation as ``EvaluateResult.to_json`` returns it.
    """
    split = f" ({result['split'].replace('_', ' ')})" if result["split"] else ""
    rows = {"images": f"{result['num_images']:,}{split}"}
    if members := result.get("members"):
        weights = ", ".join(f"{member['weight']:.3g}" for member in members)
        rows["models"] = f"mean of {len(members)} (weights {weights})"
    if result["tta"]:
        rows["tta"] = describe_tta(parse_tta(result.get("views", True)))
    if result.get("image_size"):
        rows["image size"] = f"{result['image_size']} px"
    rejection = _describe_rejection(result.get("rejection"))
    if "per_label" in result:
        return rows | describe_label_metrics(result) | rejection
    rows["prior"] = result["prior"]["target_prior"]
    remarks = {
        "accuracy": f"  (95% interval {_format_interval(result['accuracy_interval'])})",
        "rarest_third_recall": f"  ({_describe_rarest_third(result['rarest_third'])})",
    }
    for name, value in result["metrics"].items():
        rows[name] = format_metric(name, value) + remarks.get(name, "")
    if result.get("without_leaks"):
        rows["without leaks"] = _describe_without_leaks(result)
    return rows | rejection


def build_class_table(result: Mapping[str, Any]) -> Table:
    """Return a table with one row per class, lowest F1 first, at most 80 columns wide."""
    if "per_label" in result:
        return build_label_table(result)
    rows = _select_classes(result["per_class"])
    gap = 2 if max(len(name) for name, _ in rows) <= 16 else 1
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("\nclass", overflow="fold", max_width=22)
    has_train_counts = any(
        stats["train_images"] is not None for stats in result["per_class"].values()
    )
    headers = ["\nimages", "\nprecision", "\nrecall", "95% interval\nof recall", "\nF1"]
    for header in [*(["train\nimages"] if has_train_counts else []), *headers]:
        table.add_column(header, justify="right", no_wrap=True)
    for name, stats in rows:
        table.add_row(
            escape(name),
            *([str(stats["train_images"])] if has_train_counts else []),
            str(stats["support"]),
            format_defined_percent(stats["precision"]),
            format_defined_percent(stats["recall"]),
            "" if stats["recall"] is None else _format_interval(stats["recall_interval"]),
            format_defined_percent(stats["f1"]),
        )
    return table


def build_remarks(result: Mapping[str, Any], *, show_classes: bool = True) -> list[str]:
    """Return the lines below the tables, on undefined metrics and on classes that are not shown."""
    chosen = describe_validation_choices(result.get("validation_choices", ()))
    first = [*([chosen] if chosen else []), *_list_rejection_remarks(result.get("rejection"))]
    if "per_label" in result:
        label_remarks = build_label_remarks(result, show_labels=show_classes)
        return [*label_remarks, *(line for one in first for line in textwrap.wrap(one, _WIDTH))]
    classes: Mapping[str, Stats] = result["per_class"]
    remarks = first
    if show_classes and len(classes) > FULL_TABLE_MAX_CLASSES:
        num_hidden = len(classes) - len(_select_classes(classes))
        remarks.append(
            f"The table shows the {NUM_WEAKEST} classes with the lowest F1 and the {NUM_RAREST} "
            f"rarest classes; {num_hidden} of {len(classes)} classes are not shown. "
            f"--json lists all classes."
        )
    keys = ("precision", "recall", "f1")
    if any(stats[key] is None for stats in classes.values() for key in keys):
        remarks.append(_explain_undefined(result))
    return [line for remark in remarks for line in textwrap.wrap(remark, _WIDTH)]


def format_metric(name: str, value: float | None) -> str:
    """Return a metric: a loss with four decimals, any other as a percentage."""
    if value is None:
        return UNDEFINED
    return f"{value:.4f}" if name == "loss" else format_percent(value)


def _describe_without_leaks(result: Mapping[str, Any]) -> str:
    """Return the accuracy without leaked images, which have duplicates in the training split."""
    clean = result["without_leaks"]
    num_leaked = result["num_images"] - clean["num_images"]
    return (
        f"accuracy {format_defined_percent(clean['metrics']['accuracy'])} (95% interval "
        f"{_format_interval(clean['accuracy_interval'])}); "
        f"{format_count(num_leaked, 'leaked image')} left out"
    )


def _describe_rejection(rejection: Mapping[str, Any] | None) -> dict[str, str]:
    """Return how many images are answered and how rightly, and why others are rejected."""
    if rejection is None:
        return {}
    reasons = rejection["num_rejected"]
    num_rejected, num_images = sum(reasons.values()), rejection["num_images"]
    num_answered = num_images - num_rejected
    text = f"{num_answered} of {num_images} ({format_percent(num_answered / num_images)})"
    answered = rejection["answered"]
    if answered is not None and answered["precision"] is not None:
        text += (
            f", {format_percent(answered['precision'])} of them rightly (95% confident: at least "
            f"{format_percent(answered['precision_lower_bound'])})"
        )
    listed = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    return {"answered": text, "rejected": listed or "none"}


def _list_rejection_remarks(rejection: Mapping[str, Any] | None) -> list[str]:
    """Return how answers are rejected, and whether these images chose the thresholds."""
    if rejection is None:
        return []
    lines = list(rejection["description"])
    if rejection["has_chosen"]:
        lines.append(
            "These images chose the thresholds: what --reject does to them is a little better than "
            "what it does to others."
        )
    return lines


def _explain_undefined(result: Mapping[str, Any]) -> str:
    num_averaged = result["num_classes_averaged"]
    num_rarest = len(result["rarest_third"]["classes"])
    rarest = (
        f", rarest_third_recall over {num_averaged['rarest_third_recall']} of {num_rarest}"
        if num_rarest
        else ""
    )
    return (
        f"{UNDEFINED}: recall needs images of the class, precision needs predictions of it. "
        f"Averages leave undefined values out: balanced_accuracy is over "
        f"{num_averaged['balanced_accuracy']} of {len(result['per_class'])} classes, macro_f1 over "
        f"{num_averaged['macro_f1']} (present or predicted){rarest}."
    )


def _select_classes(classes: Mapping[str, Stats]) -> Sequence[tuple[str, Stats]]:
    """Return the classes of the table, lowest F1 first and undefined F1 last."""
    by_f1 = sorted(classes.items(), key=_get_f1_sort_key)
    if len(classes) <= FULL_TABLE_MAX_CLASSES:
        return by_f1
    rarest = sorted(classes.items(), key=_get_count_sort_key)[:NUM_RAREST]
    selected = {name for name, _ in [*by_f1[:NUM_WEAKEST], *rarest]}
    return [(name, stats) for name, stats in by_f1 if name in selected]


def _get_f1_sort_key(item: tuple[str, Stats]) -> float:
    f1: float | None = item[1]["f1"]
    return 2.0 if f1 is None else f1


def _get_count_sort_key(item: tuple[str, Stats]) -> int:
    train_images: int | None = item[1]["train_images"]
    return int(item[1]["support"]) if train_images is None else train_images


def _describe_rarest_third(rarest_third: Mapping[str, Any]) -> str:
    """Return the rarest classes, by name if they are few, and how they were ranked."""
    names = list(rarest_third["classes"])
    text = ", ".join(names)
    if len(names) > 3 or len(text) > 40:
        text = format_count(len(names), "class")
    return f"{text}; {_RANKED_BY[rarest_third['ranked_by']]}"


def _format_interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{100 * low:.1f}-{format_percent(high)}"
