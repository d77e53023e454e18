"""Text form of the results of heads on earlier stages of the backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.units import format_count, format_percent

SIMILAR_LOSS_RATIO = 0.8
"""Log loss of the last features divided by that of the best earlier stage, up to which images count
as similar to those of pretraining (``docs/guides/transferability.md``)."""


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
    return [
        f"Heads on earlier stages: {others}; on the last features "
        f"{format_percent(last['cross_validated_accuracy'])} "
        f"({format_count(stages['num_images'], 'training image')}). "
        f"{describe_similarity(stages)}"
    ]


def describe_similarity(stages: Mapping[str, Any]) -> str:
    """Return a sentence on how similar the images are to what the backbone knows."""
    best = next(score for score in stages["scores"] if score["name"] == stages["best_earlier"])
    if stages["loss_ratio"] >= 1:
        return (
            f"{best['name']} has a lower log loss than the last features: the images are unlike "
            f"those that the backbone was trained on, and training it further is likely to help."
        )
    reduction = format_percent(1 - stages["loss_ratio"], decimals=0)
    sentence = (
        f"The log loss of the last features is {reduction} below that of the best earlier stage"
    )
    if stages["loss_ratio"] > SIMILAR_LOSS_RATIO:
        return f"{sentence}."
    return f"{sentence}: the images are like those that the backbone was trained on."


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
