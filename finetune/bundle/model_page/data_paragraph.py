"""Paragraphs of a README on the images: their number, the audit, and the origin of the weights."""

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.bundle.model_card import ModelCard
from finetune.bundle.model_page.escape_text import escape_markdown
from finetune.bundle.model_page.weights_origin import WeightsOrigin
from finetune.units import format_count

DATA_KEY = "data"
"""Fact of a card on the images of its run, see ``finetune.commands.fit.card_facts``."""

_SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}


def render_data(card: ModelCard) -> str:
    """Return the section on the images; "" where nothing is known."""
    data = card.facts.get(DATA_KEY)
    if not isinstance(data, Mapping):
        total = card.num_train_images
        return "" if not total else f"## Data\n\nTrained on {format_count(total, 'image')}.\n\n"
    return f"## Data\n\n{' '.join(_iter_sentences(data, card))}\n\n"


def _iter_sentences(data: Mapping[str, Any], card: ModelCard) -> Iterator[str]:
    """Yield what the audit of the images found, in sentences."""
    counts = data.get("num_images") or {}
    shown = [
        f"{count:,} {_SPLIT_NAMES.get(split, split)}" for split, count in counts.items() if count
    ]
    noun = "label" if card.is_multi_label else "class"
    if shown:
        yield f"{_join(shown)} images of {format_count(len(card.classes), noun)}."
    if num_rejected := data.get("num_rejected"):
        verb = "was" if num_rejected == 1 else "were"
        yield f"{format_count(num_rejected, 'file')} could not be used and {verb} left out."
    if sizes := data.get("size_px"):
        yield (
            f"Their size is {sizes['width'][0]:,.0f} to {sizes['width'][2]:,.0f} px in width "
            f"(median {sizes['width'][1]:,.0f}) and {sizes['height'][0]:,.0f} to "
            f"{sizes['height'][2]:,.0f} px in height (median {sizes['height'][1]:,.0f})."
        )
    yield _describe_duplicates(data.get("duplicates"))
    kinds = data.get("suspicious_images") or {}
    if kinds:
        listed = [f"{count:,} {escape_markdown(kind)}" for kind, count in kinds.items()]
        yield f"Suspicious images: {_join(listed)}."
    if (num_errors := data.get("num_label_errors")) is not None:
        yield (
            f"Cross-validated predictions contradict the labels of "
            f"{format_count(num_errors, 'image')} clearly enough for a label error."
            if num_errors
            else "No label error was found by cross-validated predictions."
        )


def _describe_duplicates(duplicates: Any) -> str:
    """Return what the search for duplicates found."""
    if duplicates is None:
        return "Duplicates were not searched."
    if not duplicates["num_groups"]:
        return "No duplicates were found."
    groups, images = duplicates["num_groups"], duplicates["num_images"]
    sentence = f"{format_count(images, 'image')} are duplicates of each other in "
    sentence += format_count(groups, "group")
    conflicts = [
        f"{duplicates[key]:,} across {name}"
        for key, name in (("num_across_classes", "classes"), ("num_across_splits", "splits"))
        if duplicates[key]
    ]
    return f"{sentence}, {_join(conflicts)}." if conflicts else f"{sentence}."


def render_licence(origin: WeightsOrigin, own_license: str | None = None) -> str:
    """Return the section on the licence: that of the model, and that of the backbone's weights.

    Args:
        origin: Origin of the backbone's weights.
        own_license: Licence of the model; None if its author has stated none.
    """
    text = _describe_origin(origin)
    if own_license is not None:
        text = f"The model has the licence {escape_markdown(own_license)}. {text}"
    return f"## Licence\n\n{text} The images may have terms of their own.\n\n"


def _describe_origin(origin: WeightsOrigin) -> str:
    """Return what is known of the backbone's weights."""
    licence = origin.license and escape_markdown(origin.license)
    if origin.kind == "random":
        return (
            "The network was trained from random weights. No licence comes with them: who "
            "publishes the model states one."
        )
    source = "a file" if origin.kind == "file" else "the hub"
    subject = "The backbone's weights came from " + (
        f"`{origin.base_model}`" if origin.base_model else source
    )
    if licence is None:
        return (
            f"{subject}, whose licence is unknown: find it out before the model is published or "
            f"used commercially."
        )
    text = f"{subject}, under the licence {licence}."
    if origin.is_non_commercial:
        text += " **It allows no commercial use**, and so none of this model."
    return text


def _join(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
