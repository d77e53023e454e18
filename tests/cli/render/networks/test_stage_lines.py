"""Lines on heads on earlier stages: similar, different and undecided images."""

from typing import Any

import pytest

from finetune.cli.render.networks.stage_lines import build_stage_rows, describe_stages


def build_stages(*, last_loss: float, earlier_loss: float) -> dict[str, Any]:
    scores = [
        {"name": name, "cross_validated_accuracy": accuracy, "cross_validated_loss": loss}
        for name, accuracy, loss in (
            ("layer4", 0.877, last_loss), ("layer3", 0.861, earlier_loss), ("conv1", 0.5, 9.0),
        )
    ]  # fmt: skip
    return {
        "num_images": 244,
        "scores": scores,
        "best_earlier": "layer3",
        "loss_ratio": last_loss / earlier_loss,
    }


@pytest.mark.parametrize(
    ("last_loss", "expected", "other"),
    [(0.5, "50% below", "unlike"), (0.9, "10% below", "like those"), (1.2, "unlike", "below")],
)
def test_describe_stages_tells_how_similar_the_images_are(
    last_loss: float, expected: str, other: str
) -> None:
    (line,) = describe_stages(build_stages(last_loss=last_loss, earlier_loss=1.0))
    assert "86.1% (layer3), 50.0% (conv1)" in line
    assert "87.7%" in line
    assert expected in line
    assert other not in line


def test_describe_stages_without_stages_is_empty() -> None:
    assert describe_stages(None) == []


def test_stage_rows_are_those_of_backbones_with_stages() -> None:
    stages = build_stages(last_loss=0.5, earlier_loss=1.0)
    rows: list[dict[str, Any]] = [
        {"backbone": "a", "stages": stages},
        {"backbone": "b", "stages": None},
    ]
    assert build_stage_rows(rows) == [("a", "layer4=87.7, layer3=86.1, conv1=50.0")]
