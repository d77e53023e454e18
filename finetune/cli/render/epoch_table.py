"""Rows of the table of epochs, in which training and validation images are measured alike."""

from collections.abc import Mapping
from typing import Any

_GAP = "  "

Columns = Mapping[str, tuple[str, int, str]]
"""Key of an epoch's row to the title, width and format of its column."""

_LOSSES: Columns = {
    "train_eval/loss": ("train", 7, ".4f"),
    "val/loss": ("val", 7, ".4f"),
    "val/calibrated_loss": ("cal.", 7, ".4f"),
}
_TRAINING_LOSS: Columns = {"train/loss": ("train loss", 10, ".4f")}
_LOSSES_ALONE: Columns = {
    **_TRAINING_LOSS,
    "val/loss": ("val loss", 8, ".4f"),
    "val/calibrated_loss": ("cal. loss", 9, ".4f"),
}
_ACCURACIES: Columns = {
    "train_eval/accuracy": ("train", 6, ".1%"),
    "val/accuracy": ("val", 6, ".1%"),
}
_PRECISIONS: Columns = {
    "train_eval/mean_average_precision": ("train", 6, ".1%"),
    "val/mean_average_precision": ("val", 6, ".1%"),
}
_SCORES: Columns = {
    "val/balanced_accuracy": ("balanced", 8, ".1%"),
    "val/macro_f1": ("macro F1", 8, ".1%"),
}
_LABEL_SCORES: Columns = {
    "val/micro_average_precision": ("micro AP", 8, ".1%"),
    "val/macro_f1": ("macro F1", 8, ".1%"),
}
_SECONDS: Columns = {"seconds": ("seconds", 7, ".1f")}


def format_epoch_row(row: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the lines of the header and the line of an epoch, at most 80 characters wide.

    With a sample of the training images that is measured as the validation images are, its loss
    and accuracy stand beside theirs. The loss that the optimizer minimises, which includes
    augmentation and label smoothing, is shown only where there is no such sample. It is all
    that is shown without validation images.

    Args:
        row: Metrics of the epoch by name.
    """
    groups = _select_groups(row)
    columns = {key: column for _, group in groups for key, column in group.items()}
    titles = _GAP.join(f"{title:>{width}}" for title, width, _ in columns.values())
    cells = _GAP.join(
        _format_cell(row[key], width, spec) if key in row else " " * width
        for key, (_, width, spec) in columns.items()
    )
    names = _GAP.join(f"{name:^{_measure_width(group)}}" for name, group in groups)
    return [names.rstrip(), titles] if names.strip() else [titles], cells


def _select_groups(row: Mapping[str, Any]) -> list[tuple[str, Columns]]:
    """Return the columns in groups with their common title, which is empty for most."""
    epoch: Columns = {"epoch": ("epoch", 5, "d")}
    if not any(key.startswith("val/") for key in row):
        return [("", {**epoch, **_TRAINING_LOSS, **_SECONDS})]
    is_multi_label = "val/mean_average_precision" in row
    scores = _LABEL_SCORES if is_multi_label else _SCORES
    if "train_eval/loss" in row:
        middle = ("mAP", _PRECISIONS) if is_multi_label else ("accuracy", _ACCURACIES)
        return [("", epoch), ("log loss", _LOSSES), middle, ("", {**scores, **_SECONDS})]
    key, title = ("mean_average_precision", "mAP") if is_multi_label else ("accuracy", "accuracy")
    single: Columns = {f"val/{key}": (title, 8, ".1%")}
    return [("", {**epoch, **_LOSSES_ALONE, **single, **scores, **_SECONDS})]


def _measure_width(columns: Columns) -> int:
    return sum(width for _, width, _ in columns.values()) + len(_GAP) * (len(columns) - 1)


def _format_cell(value: float, width: int, spec: str) -> str:
    """Return a number in its column, in scientific notation where it does not fit."""
    text = f"{value:>{width}{spec}}"
    return text if len(text) <= width else f"{value:>{width}.1e}"
