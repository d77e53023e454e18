"""Section of a README on intended use and limits, from the numbers of the run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.bundle.model_card import ModelCard
from finetune.bundle.model_page.data_paragraph import DATA_KEY
from finetune.bundle.model_page.escape_text import escape_markdown
from finetune.bundle.model_page.metric_tables import choose_split, format_interval
from finetune.bundle.validation_choices import describe_card_choices
from finetune.units import format_count, format_percent

DIAGNOSIS_KEY = "diagnosis"
"""Fact of a card with the problems and warnings of the diagnosis of its run."""

_MAX_LISTED = 5
_FEW_IMAGES = 20
_SPLIT_NAMES = {"val": "validation images", "test": "test images"}


def render_limits(card: ModelCard) -> str:
    """Return the section with a bullet for each use and limit."""
    bullets = [
        _describe_use(card),
        _describe_input(card),
        *_iter_class_limits(card),
        *_iter_sample_limits(card),
        *_iter_findings(card.facts.get(DIAGNOSIS_KEY) or ()),
    ]
    return "## Intended use and limits\n\n" + "".join(f"- {text}\n" for text in bullets) + "\n"


def _describe_use(card: ModelCard) -> str:
    if card.is_multi_label:
        return (
            f"Gives an image any of the {format_count(len(card.classes), 'label')} below. Things "
            f"that no label names are passed over, and images unlike those of the training get "
            f"labels, too: a high probability is no sign that an image belongs here."
        )
    return (
        f"Assigns an image to one of the {format_count(len(card.classes), 'class')} below. An "
        f"image of something else gets one of them, too, perhaps with a high probability: there "
        f"is no guarantee for images unlike those of the training."
    )


def _describe_input(card: ModelCard) -> str:
    """Return what the network sees of an image."""
    channels, height, width = card.spec.input_size
    text = f"The network sees {width} x {height} px"
    if channels != 3:
        text += f" of {format_count(channels, 'channel')}"
    if card.spec.crop_mode == "center" and card.spec.crop_pct < 1:
        cut = 1 - card.spec.crop_pct
        text += f", without the outer {format_percent(cut)} of the shorter side"
    sizes = (card.facts.get(DATA_KEY) or {}).get("size_px")
    if sizes:
        shorter = min(sizes["width"][1], sizes["height"][1])
        factor = shorter * card.spec.crop_pct / min(height, width)
        if factor > 1:
            text += f"; the images of the run were reduced {factor:.1f} times (median)"
    return f"{text}. Finer details are lost."


def _iter_class_limits(card: ModelCard) -> Iterator[str]:
    """Yield the classes with the fewest images, and the one that is recognised least often."""
    counts = card.train_counts
    noun = "label" if card.is_multi_label else "class"
    if counts is not None:
        pairs = sorted(zip(counts, card.classes, strict=True))
        few = [pair for pair in pairs if pair[0] < _FEW_IMAGES] or pairs[:1]
        if few[0][0] < _FEW_IMAGES:
            yield (
                f"Fewest training images: {_list_pairs(few)}. With fewer than {_FEW_IMAGES}, much "
                f"of what a {noun} can look like was not seen."
            )
        elif few[0][0] < pairs[-1][0]:
            yield f"Fewest training images: {_list_pairs(few)}."
    split = choose_split(card.facts)
    details: Mapping[str, Any] = {} if split is None else card.facts["evaluations"][split]
    stats = details.get("per_class") or details.get("per_label") or {}
    known = [(one["recall"], name) for name, one in stats.items() if one["recall"] is not None]
    if known:
        recall, name = min(known)
        one = stats[name]
        interval = one.get("recall_interval")
        shown = "" if interval is None else f"; 95% interval {format_interval(interval)}"
        yield (
            f"Weakest {noun}: {escape_markdown(name)}, of which {format_percent(recall)} of "
            f"{format_count(one['support'], f'{_name_split(split)} image')} are recognised{shown}."
        )
    missing = [name for name, one in stats.items() if not one["support"]]
    if missing:
        yield f"Not tested, for want of images: {_list_names(missing)}."


def _iter_sample_limits(card: ModelCard) -> Iterator[str]:
    """Yield what the held-out images can show, and what they have chosen."""
    split = choose_split(card.facts)
    if split is not None:
        details = card.facts["evaluations"][split]
        count = format_count(details["num_images"], f"{_name_split(split)} image")
        interval = details.get("accuracy_interval")
        if interval is not None:
            margin = (interval[1] - interval[0]) / 2
            yield (
                f"Measured on {count}: the accuracy on images of the same kind lies between "
                f"{format_interval(interval).replace(' to ', ' and ')} (95% interval), and "
                f"differences of less than about {100 * margin:.1f} points may be chance. Images "
                f"from elsewhere were not measured."
            )
        else:
            yield f"Measured on {count}. Images from elsewhere were not measured."
    if split == "out_of_fold":
        yield (
            "Each held-out image was predicted by a network of the cross-validation that had not "
            "been trained on it. The model itself was not measured: no image of the run is new to "
            "it."
        )
    if sentence := describe_card_choices(card):
        yield sentence


def _iter_findings(findings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for finding in findings:
        title, sentence = str(finding.get("title", "")), str(finding.get("sentence", ""))
        text = f"{title}: {sentence}" if sentence and sentence != title else f"{title}."
        yield f"Diagnosis of the run, {finding.get('severity')}: {escape_markdown(text)}"


def _name_split(split: str | None) -> str:
    return {"val": "validation", "test": "test"}.get(str(split), "held-out")


def _list_pairs(pairs: Sequence[tuple[int, str]]) -> str:
    shown = ", ".join(f"{escape_markdown(name)} ({count:,})" for count, name in pairs[:_MAX_LISTED])
    return shown + (f" and {len(pairs) - _MAX_LISTED} more" if len(pairs) > _MAX_LISTED else "")


def _list_names(names: Sequence[str]) -> str:
    shown = ", ".join(map(escape_markdown, names[:_MAX_LISTED]))
    return shown + (f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else "")
