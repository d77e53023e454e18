"""Thresholds of a multi-label model on its model card and in its README."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.bundle.model_page.escape_text import escape_markdown


def parse_thresholds(values: Any, num_labels: int) -> tuple[float, ...] | None:
    """Return the thresholds of a card as numbers; None for a model without any.

    Args:
        values: Value on the card.
        num_labels: Number of labels of the model.

    Raises:
        ValueError: There is not one for each label, or one is no number.
    """
    if values is None:
        return None
    thresholds = tuple(float(value) for value in values)
    if len(thresholds) != num_labels or not all(map(math.isfinite, thresholds)):
        raise ValueError(f"thresholds {values!r} are not a number for each of {num_labels} labels")
    return thresholds


def render_thresholds(
    classes: Sequence[str], thresholds: Sequence[float] | None, *, facts: Mapping[str, Any]
) -> str:
    """Return the paragraph and the table of thresholds in Markdown; "" without any.

    Args:
        classes: Label names in index order.
        thresholds: Probability from which each label is predicted.
        facts: Facts of the model card, which tell what chose the thresholds.
    """
    if thresholds is None:
        return ""
    rows = "".join(
        f"| {escape_markdown(name)} | {threshold:.4f} |\n"
        for name, threshold in zip(classes, thresholds, strict=True)
    )
    return (
        f"An image has any number of labels: each has a probability of its own (a sigmoid, not a "
        f"softmax), and is predicted from its threshold on. The thresholds "
        f"{_describe_origin(facts)}.\n\n| label | threshold |\n|---|---|\n{rows}\n"
    )


def _describe_origin(facts: Mapping[str, Any]) -> str:
    """Return what the thresholds are, to follow the word as its verb."""
    if "cross_validation" in facts:
        return "have the highest F1 on the held-out images of the folds"
    if "ensemble" in facts:
        return "are the means of those of the members"
    return "have the highest F1 on the validation images"
