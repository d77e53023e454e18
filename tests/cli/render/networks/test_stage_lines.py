"""Lines on heads on earlier stages: similar, different and undecided images."""

from typing import Any

import pytest

from finetune.cli.render.networks.stage_lines import build_stage_rows, describe_stages


def build_stages(
    *, last_loss: float, earlier_loss: float, error: float = 0.01, accuracy: float = 0.877
) -> dict[str, Any]:
    scores = [
        {"name": name, "cross_validated_accuracy": correct, "cross_validated_loss": loss}
        for name, correct, loss in (
            ("layer4", accuracy, last_loss), ("layer3", 0.861, earlier_loss), ("conv1", 0.5, 9.0),
        )
    ]  # fmt: skip
    return {
        "num_images": 244,
        "scores": scores,
        "best_earlier": "layer3",
        "loss_ratio": last_loss / earlier_loss,
        "loss_difference": last_loss - earlier_loss,
        "loss_difference_standard_error": error,
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


@pytest.mark.parametrize("last_loss", [0.7, 1.0, 1.2])
def test_describe_stages_says_nothing_of_differences_within_chance(last_loss: float) -> None:
    stages = build_stages(last_loss=last_loss, earlier_loss=1.0, error=0.16)
    (line,) = describe_stages(stages)
    assert "do not differ beyond chance" in line
    for claim in ("unlike", "like those", "lower", "below", "help"):
        assert claim not in line


def test_describe_stages_promises_no_gain_where_the_last_features_are_right() -> None:
    (line,) = describe_stages(
        build_stages(last_loss=0.02, earlier_loss=0.01, accuracy=1.0, error=0)
    )
    assert "likely to help" not in line
    assert "little to gain" in line


def test_describe_stages_prints_no_reduction_of_zero_percent() -> None:
    (line,) = describe_stages(build_stages(last_loss=0.998, earlier_loss=1.0, error=0.0001))
    assert "less than 1% below" in line


def test_describe_stages_of_an_earlier_release_has_the_accuracies_alone() -> None:
    stages = build_stages(last_loss=1.2, earlier_loss=1.0)
    del stages["loss_difference"], stages["loss_difference_standard_error"]
    (line,) = describe_stages(stages)
    assert line.endswith("87.7% (244 training images).")


def test_describe_stages_says_that_the_probe_has_more_views() -> None:
    stages = {**build_stages(last_loss=0.5, earlier_loss=1.0), "num_probe_views": 2}
    assert "(244 training images, one view of each)" in describe_stages(stages)[0]


def test_describe_stages_without_stages_is_empty() -> None:
    assert describe_stages(None) == []


def test_stage_rows_are_those_of_backbones_with_stages() -> None:
    stages = build_stages(last_loss=0.5, earlier_loss=1.0)
    rows: list[dict[str, Any]] = [
        {"backbone": "a", "stages": stages},
        {"backbone": "b", "stages": None},
    ]
    assert build_stage_rows(rows) == [("a", "layer4=87.7, layer3=86.1, conv1=50.0")]
