"""Thresholds of a multi-label model on its model card and in its README."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.bundle.model_page.escape_text import escape_markdown
from finetune.evaluation.fold_statistics import ALL_FOLDS, OTHER_FOLDS, THRESHOLDS_KEY

_METRICS_AT_THRESHOLDS = ("macro_f1", "micro_f1", "subset_accuracy")
_STATISTICS_AT_THRESHOLDS = ("num_predicted", "threshold", "precision", "recall", "f1")
"""Entries of an evaluation that thresholds decide on."""


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


def mark_fold_thresholds(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a model whose thresholds the held-out images of all folds have chosen.

    What was measured at earlier thresholds is left out of its metrics.

    Args:
        facts: Facts of the model card with earlier thresholds.
    """
    marked = {**facts, THRESHOLDS_KEY: ALL_FOLDS}
    if facts.get("metrics"):
        marked["metrics"] = {
            split: {
                name: value for name, value in values.items() if name not in _METRICS_AT_THRESHOLDS
            }
            for split, values in facts["metrics"].items()
        }
    if facts.get("evaluations"):
        marked["evaluations"] = {
            split: _leave_out_statistics(details) for split, details in facts["evaluations"].items()
        }
    return marked


def _leave_out_statistics(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation whose statistics at thresholds are undefined."""
    kept = dict(details)
    if "per_label" in details:
        unknown = dict.fromkeys(_STATISTICS_AT_THRESHOLDS)
        kept["per_label"] = {
            name: {**stats, **unknown} for name, stats in details["per_label"].items()
        }
    if "num_labels_averaged" in details:
        averaged = details["num_labels_averaged"].items()
        kept["num_labels_averaged"] = {
            name: count for name, count in averaged if name not in _METRICS_AT_THRESHOLDS
        }
    return kept


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
        f"{_describe_origin(facts)}\n\n| label | threshold |\n|---|---|\n{rows}\n"
    )


def _describe_origin(facts: Mapping[str, Any]) -> str:
    """Return what the thresholds are, to follow the word as its verb, and what else to know."""
    is_of_folds = facts.get(THRESHOLDS_KEY) == ALL_FOLDS
    if is_of_folds or "cross_validation" in facts:
        text = "have the highest F1 on the held-out images of the folds."
        evaluations = facts.get("evaluations") or {}
        if (evaluations.get("out_of_fold") or {}).get(THRESHOLDS_KEY) == OTHER_FOLDS:
            return (
                f"{text} Precision, recall, F1 and subset accuracy of out_of_fold are at "
                f"thresholds that the other folds chose."
            )
        if is_of_folds and "val" in evaluations:
            return (
                f"{text} Precision, recall, F1 and subset accuracy of this network were not "
                f"measured at them."
            )
        return text
    if "ensemble" in facts:
        return "are the means of those of the members."
    return "have the highest F1 on the validation images."
