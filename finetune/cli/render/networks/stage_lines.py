"""Text form of the results of heads on earlier stages of the backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.units import format_count, format_percent

SIMILAR_LOSS_RATIO = 0.8
"""Log loss of the last features divided by that of the best earlier stage, up to which images count
as similar to those of pretraining (``docs/guides/transferability.md``)."""

SIGNIFICANT_ERRORS = 2
"""Standard errors up to which a difference between log losses counts as chance."""

CEILING_ACCURACY = 0.99
"""Accuracy of the last features from which nothing is said of a gain by training."""


def describe_stages(stages: Mapping[str, Any] | None) -> list[str]:
    """Return the lines that compare earlier stages with the last features; none without them.

    Args:
        stages: Result as ``StageProbes.to_json`` returns it.
    """
    if stages is None:
        return []
    last, *earlier = stages["scores"]
    others = ", ".join(
        f"{format_percent(score['cross_validated_accuracy'])} ({score['name']})"
        for score in earlier
    )
    views = ", one view of each" if stages.get("num_probe_views", 1) > 1 else ""
    line = (
        f"Heads on earlier stages: {others}; on the last features "
        f"{format_percent(last['cross_validated_accuracy'])} "
        f"({format_count(stages['num_images'], 'training image')}{views}). "
        f"{describe_similarity(stages)}"
    )
    return [line.rstrip()]


def describe_similarity(stages: Mapping[str, Any]) -> str:
    """Return a sentence on how similar the images are to what the backbone knows."""
    last, best = stages["scores"][0], stages["best_earlier"]
    difference = stages.get("loss_difference")
    error = stages.get("loss_difference_standard_error")
    if difference is None or error is None:  # a run of an earlier release, or a single image
        return ""
    if abs(difference) <= SIGNIFICANT_ERRORS * error:
        return f"The log losses of the last features and of {best} do not differ beyond chance."
    if difference < 0:
        sentence = (
            f"The log loss of the last features is {_format_reduction(stages['loss_ratio'])} below "
            f"that of the best earlier stage"
        )
        if stages["loss_ratio"] > SIMILAR_LOSS_RATIO:
            return f"{sentence}."
        return f"{sentence}: the images are like those that the backbone was trained on."
    sentence = f"{best} has a lower log loss than the last features"
    if last["cross_validated_accuracy"] >= CEILING_ACCURACY:
        return f"{sentence}, whose accuracy leaves little to gain."
    return (
        f"{sentence}: the images are unlike those that the backbone was trained on, and training "
        f"it further is likely to help."
    )


def _format_reduction(ratio: float) -> str:
    return format_percent(1 - ratio, decimals=0) if ratio <= 0.99 else "less than 1%"


def build_stage_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return backbone and text of each row of a comparison whose stages were probed."""
    return [
        (
            row["backbone"],
            ", ".join(
                f"{score['name']}={100 * score['cross_validated_accuracy']:.1f}"
                for score in row["stages"]["scores"]
            ),
        )
        for row in rows
        if row.get("stages") is not None
    ]
