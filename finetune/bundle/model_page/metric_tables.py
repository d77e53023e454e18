"""Tables of a README: metrics, classes, calibration."""

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.bundle.model_card import ModelCard
from finetune.bundle.model_page.escape_text import escape_markdown
from finetune.bundle.validation_choices import uses_fitted_temperature
from finetune.units import format_percent

_MAX_CLASSES = 1_000
"""Rows of the table of classes; sites cut long pages."""

_PREFERRED_SPLITS = ("test", "out_of_fold", "val")


def choose_split(facts: Mapping[str, Any]) -> str | None:
    """Return the split whose evaluation says most: test, else out-of-fold, else validation."""
    evaluations = facts.get("evaluations") or {}
    return next((split for split in _PREFERRED_SPLITS if split in evaluations), None)


def render_metrics(facts: Mapping[str, Any]) -> str:
    """Return the table of the metrics of each split; "" without any."""
    evaluations = facts.get("evaluations") or {}
    rows = "".join(
        f"| {split} | {name} | {'undefined' if value is None else f'{value:.4f}'} |"
        f"{_describe_sample(evaluations.get(split) or {}, name)}\n"
        for split, values in (facts.get("metrics") or {}).items()
        for name, value in values.items()
    )
    if not rows:
        return ""
    return f"| split | metric | value | images; 95% interval |\n|---|---|---|---|\n{rows}\n"


def _describe_sample(details: Mapping[str, Any], metric: str) -> str:
    """Return the last cell of a row of metrics."""
    parts = [f"{details['num_images']:,}"] if "num_images" in details else []
    if metric == "accuracy" and (interval := details.get("accuracy_interval")):
        parts.append(format_interval(interval))
    return f" {'; '.join(parts)} |" if parts else " |"


def format_interval(interval: Any) -> str:
    """Return a 95% interval of a fraction, as percent."""
    low, high = interval
    return f"{format_percent(low)} to {format_percent(high)}"


def render_classes(card: ModelCard) -> str:
    """Return the table of the classes in index order, with what is known of each."""
    split = choose_split(card.facts)
    details = {} if split is None else card.facts["evaluations"][split]
    stats = details.get("per_class") or details.get("per_label") or {}
    counts = card.train_counts
    noun = "label" if card.is_multi_label else "class"
    columns = [noun]
    columns += [] if counts is None else ["training images"]
    columns += [f"{split} images", "recall", "95% interval", "precision"] if stats else []
    lines = [f"| index | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for index, name in enumerate(card.classes[:_MAX_CLASSES]):
        cells = [escape_markdown(name)]
        cells += [] if counts is None else [f"{counts[index]:,}"]
        cells += list(_iter_class_cells(stats.get(name) or {})) if stats else []
        lines.append(f"| {index} | {' | '.join(cells)} |")
    num_hidden = len(card.classes) - _MAX_CLASSES
    if num_hidden > 0:
        lines += ["", f"{num_hidden:,} more are in finetune.json."]
    return "\n".join(lines) + "\n\n"


def _iter_class_cells(stats: Mapping[str, Any]) -> Iterator[str]:
    yield "" if stats.get("support") is None else f"{stats['support']:,}"
    yield _format_fraction(stats.get("recall"))
    interval = stats.get("recall_interval")
    yield "" if interval is None else format_interval(interval)
    yield _format_fraction(stats.get("precision"))


def _format_fraction(value: float | None) -> str:
    return "undefined" if value is None else format_percent(value)


def render_calibration(facts: Mapping[str, Any]) -> str:
    """Return the table of the effect of the temperature; "" where none was fitted."""
    calibration = facts.get("calibration")
    if not calibration:
        return ""
    rows = "".join(
        f"| {name} | {calibration[key]['loss']:.4f} "
        f"| {format_percent(calibration[key]['calibration_error'])} |\n"
        for key, name in (("before", "before"), ("after", "after"))
    )
    images = f"{calibration['num_images']:,} validation images"
    if uses_fitted_temperature(facts):
        introduction = f"A temperature was fitted to {images}; its effect, cross-validated on them:"
    else:
        introduction = (
            f"A temperature of {calibration['fitted_temperature']:.3g} was fitted to {images}, and "
            f"is not used: cross-validated on them it does not lower the log loss. The "
            f"probabilities are those of the row 'before'; the row 'after' is what the temperature "
            f"would have given:"
        )
    return (
        f"{introduction}\n\n| calibration | log loss | calibration error |\n|---|---|---|\n{rows}\n"
    )
