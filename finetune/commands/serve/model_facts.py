"""Description of a model for the clients of a server, from its card."""

import html
import re
from collections.abc import Mapping
from dataclasses import asdict

from finetune.bundle.bundle import collect_versions
from finetune.bundle.model_card import ModelCard
from finetune.bundle.model_page.limits_section import render_limits
from finetune.bundle.model_page.metric_tables import choose_split
from finetune.bundle.model_page.weights_origin import find_weights_origin
from finetune.report.number_formats import format_interval, format_metric, format_metric_name
from finetune.server.served_model import ModelFacts
from finetune.units import format_count

_MARKDOWN_ESCAPE = re.compile(r"\\([^\w\s])")
_NO_BREAK_SPACE = "\u00a0"
_MAX_TITLE_CLASSES = 5
_MAX_TITLE_LENGTH = 48
_MAIN_METRICS = ("accuracy", "balanced_accuracy", "mean_average_precision", "macro_f1")
_SPLIT_NAMES = {"val": "validation images", "test": "test images"}


def build_model_facts(
    card: ModelCard, *, runtime: str, device: str, data_name: str = ""
) -> ModelFacts:
    """Return what clients are told of a model; it names no folder of the server's machine.

    Args:
        card: Card of the model.
        runtime: Library that computes the network: "torch" or "onnx".
        device: Device that it computes on.
        data_name: Name of the images of its run; empty if nothing is known.
    """
    origin = find_weights_origin(card)
    metrics = card.facts.get("metrics") or {}
    thresholds = card.thresholds
    metadata = {
        "data": data_name,
        "classes": list(card.classes),
        "is_multi_label": card.is_multi_label,
        "thresholds": None
        if thresholds is None
        else dict(zip(card.classes, thresholds, strict=True)),
        "backbone": card.backbone,
        "preprocessing": asdict(card.spec),
        "temperature": card.temperature,
        "metrics": {split: dict(values) for split, values in metrics.items()},
        "train_images": dict(zip(card.classes, card.train_counts or (), strict=False)),
        "license": origin.license,
        "versions": collect_versions(),
        "runtime": runtime,
        "device": device,
    }
    return ModelFacts(
        metadata,
        title=_choose_title(card),
        notes=tuple(_list_notes(card, origin.license)),
        figures=tuple(_list_figures(card, metrics)),
    )


def _choose_title(card: ModelCard) -> str:
    """Return the classes of a model where they are few, else their number."""
    names = ", ".join(card.classes)
    if len(card.classes) <= _MAX_TITLE_CLASSES and len(names) <= _MAX_TITLE_LENGTH:
        return names
    return format_count(len(card.classes), "label" if card.is_multi_label else "class")


def _list_figures(
    card: ModelCard, metrics: Mapping[str, Mapping[str, float | None]]
) -> list[tuple[str, str, str]]:
    """Return the main metrics of the images that say most, and the numbers of training."""
    figures: list[tuple[str, str, str]] = []
    split = choose_split(card.facts) or next(iter(metrics), None)
    values = metrics.get(split or "", {})
    details = (card.facts.get("evaluations") or {}).get(split) or {}
    for name in [name for name in _MAIN_METRICS if name in values][:2]:
        interval = details.get("accuracy_interval") if name == "accuracy" else None
        count = details.get("num_images")
        images = _SPLIT_NAMES.get(split or "", "held-out images")
        remark = images if count is None else f"{count:,} {images}"
        if interval is not None:
            text = f"95% interval {format_interval(interval, name)}"
            remark += "; " + text.replace(" ", _NO_BREAK_SPACE)
        figures.append((format_metric_name(name), format_metric(values[name], name), remark))
    noun = "label" if card.is_multi_label else "class"
    figures.append(("Labels" if card.is_multi_label else "Classes", f"{len(card.classes):,}", ""))
    if card.train_counts and card.num_train_images is not None:
        least = f"at least {min(card.train_counts):,} of each {noun}"
        figures.append(("Training images", f"{card.num_train_images:,}", least))
    return figures


def _list_notes(card: ModelCard, license_name: str | None) -> list[str]:
    notes = [
        html.unescape(_MARKDOWN_ESCAPE.sub(r"\1", line.removeprefix("- ")))
        for line in render_limits(card).splitlines()
        if line.startswith("- ")
    ]
    if license_name:
        notes.append(f"Licence of the weights that training began with: {license_name}.")
    return notes
