"""How compared backbones are sorted, and what is said of their differences."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.commands.compare.result import (
    BackboneFailure,
    BackboneResult,
    CompareResult,
    sort_by_score,
    summarize_significance,
)
from finetune.config.load import parse_assignments

NUM_VAL = 40


def row(name: str, right: Sequence[int], **known: Any) -> BackboneResult:
    """Return a row of a backbone that gets these of 40 images right."""
    answers = np.zeros(NUM_VAL, bool)
    answers[list(right)] = True
    accuracy = len(right) / NUM_VAL
    numbers: dict[str, Any] = {
        "weights": f"/weights/{name}.pth",
        "image_size": 224,
        "num_parameters": 25_000_000,
        "num_multiplications": 4_000_000_000,
        "images_per_second": 12.345678,
        "training_bytes": 3_000_000_000,
        "batch_size": 32,
        "monitor": "accuracy",
        "metrics": {"loss": 1 - accuracy, "accuracy": accuracy, "macro_f1": accuracy / 2},
        "num_images": 100,
        "num_computed": 60,
        "seconds": 1.0,
    }
    return BackboneResult(backbone=name, is_correct=answers, **{**numbers, **known})


def result(*rows: BackboneResult, **known: Any) -> CompareResult:
    settings = {"failed": (), "settings": {}, "seconds": 2.0, **known}
    return CompareResult(Path("my photos"), sort_by_score(rows), **settings)


def names(rows: Sequence[BackboneResult]) -> list[str]:
    return [one.backbone for one in rows]


def test_the_highest_score_is_first_and_of_equal_ones_the_cheapest() -> None:
    rows = [
        row("dear", range(30), num_multiplications=9),
        row("low", range(10), num_multiplications=1),
        row("cheap", range(1, 31), num_multiplications=3),
        row("high", range(31), num_multiplications=99),
    ]
    assert names(sort_by_score(rows)) == ["high", "cheap", "dear", "low"]


@pytest.mark.parametrize(("monitor", "first"), [("macro_f1", "b"), ("loss", "a")])
def test_rows_are_sorted_by_what_fit_would_choose_by(monitor: str, first: str) -> None:
    rows = [
        row(
            "a", range(20), monitor=monitor, metrics={"loss": 0.1, "accuracy": 0.5, "macro_f1": 0.1}
        ),
        row(
            "b", range(20), monitor=monitor, metrics={"loss": 0.2, "accuracy": 0.5, "macro_f1": 0.4}
        ),
    ]
    assert result(*rows).rows[0].backbone == first
    assert result(*rows).to_json()["sorted_by"] == monitor


def test_a_lead_that_chance_may_give_is_no_lead() -> None:
    found = result(row("a", range(32)), row("b", range(1, 31), num_multiplications=5))
    assert summarize_significance(found) == (
        "b does not differ from a by more than chance on these 40 images. The cheapest of the two "
        "is b."
    )
    assert found.p_values == [None, 0.5], "of two images each might have been the other's"


def test_a_lead_that_chance_hardly_gives_is_told_as_one() -> None:
    found = result(row("a", range(40)), row("b", range(30)), row("c", range(39)), row("d", [1]))
    assert summarize_significance(found) == (
        "c does not differ from a by more than chance on these 40 images. a gets more of the 40 "
        "images right than b and d, by more than chance."
    )
    assert found.to_json()["verdict"] == summarize_significance(found)


def test_many_questions_ask_for_more() -> None:
    # 6 of 6 images is rare by chance (1 in 32), but not that rare among many
    lead = row("a", range(36))
    assert "more of the 40 images right than b," in summarize_significance(
        result(lead, row("b", range(30)))
    )
    others = [row(f"b{number}", range(30)) for number in range(3)]
    assert summarize_significance(result(lead, *others)).startswith(
        "b0, b1 and b2 do not differ from a by more"
    )


def test_a_better_score_with_fewer_right_is_told_as_it_is() -> None:
    best = row("a", range(10), monitor="macro_f1", metrics={"accuracy": 0.25, "macro_f1": 0.9})
    other = row("b", range(40), monitor="macro_f1", metrics={"accuracy": 1.0, "macro_f1": 0.5})
    assert summarize_significance(result(best, other)) == (
        "b has more of the 40 images right than a, by more than chance, but a worse macro F1."
    )


def test_alone_nothing_is_compared() -> None:
    assert summarize_significance(result(row("a", range(3)))) == ""
    nothing = result(failed=(BackboneFailure("a", "broken.", 4),))
    tree = nothing.to_json()
    assert (tree["backbones"], tree["next"], tree["verdict"], tree["sorted_by"]) == (
        [],
        [],
        "",
        None,
    )
    assert tree["failed"] == [{"backbone": "a", "reason": "broken."}]


def test_the_next_command_takes_the_best_its_weights_and_the_settings() -> None:
    settings = {"seed": 3, "imbalance.strategy": "sqrt", "model.kwargs": {"a": [1, None]}}
    rows = (row("a", range(3)), row("b", range(4)))
    words = result(*rows, settings=settings).next_command
    assert words[:7] == [
        "finetune", "fit", "my photos", "--backbone", "b", "--weights", "/weights/b.pth",
    ]  # fmt: skip
    assert parse_assignments(words[7:]) == settings
    assert "--weights" not in result(row("a", range(3), weights="hub")).next_command


def test_the_csv_has_a_line_a_backbone_and_the_reasons() -> None:
    rows = (row("a", range(40), training_bytes=None), row("resnet50.a1_in1k", range(30)))
    text = result(*rows, failed=(BackboneFailure("c", "broken, and how", 4),)).to_csv()
    first, second, last = csv.DictReader(io.StringIO(text))
    assert (first["backbone"], first["accuracy"], first["training_memory_gb"]) == ("a", "1.0", "")
    assert second["imagenet_top1_error"] == "24.6"
    assert float(second["accuracy_low"]) < 0.75 < float(second["accuracy_high"])
    assert float(second["p_value_vs_best"]) == pytest.approx(2 / 2**10)
    assert (last["backbone"], last["failed"]) == ("c", "broken, and how")
