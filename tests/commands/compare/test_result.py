"""Tests of ``finetune.commands.compare.result``: order, significance, CSV and next command."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.commands.compare.backbone_result import BackboneFailure, BackboneResult
from finetune.commands.compare.label_precision import LabelPrecision
from finetune.commands.compare.result import (
    CompareResult,
    sort_by_score,
    summarize_significance,
)
from finetune.config.load import parse_assignments

NUM_VAL = 40


def row(name: str, correct: Sequence[int], **changes: Any) -> BackboneResult:
    """Return a row of a backbone that classifies these of 40 images correctly."""
    is_correct = np.zeros(NUM_VAL, bool)
    is_correct[list(correct)] = True
    accuracy = len(correct) / NUM_VAL
    numbers: dict[str, Any] = {
        "weights": f"/weights/{name}.pth",
        "image_size": 224,
        "num_parameters": 25_000_000,
        "num_macs": 4_000_000_000,
        "images_per_second": 12.345678,
        "training_bytes": 3_000_000_000,
        "batch_size": 32,
        "monitor": "accuracy",
        "metrics": {"loss": 1 - accuracy, "accuracy": accuracy, "macro_f1": accuracy / 2},
        "num_images": 100,
        "num_computed": 60,
        "seconds": 1.0,
    }
    return BackboneResult(backbone=name, is_correct=is_correct, **{**numbers, **changes})


def result(*rows: BackboneResult, **changes: Any) -> CompareResult:
    settings = {"failures": (), "settings": {}, "seconds": 2.0, **changes}
    return CompareResult(Path("my photos"), sort_by_score(rows), **settings)


def names(rows: Sequence[BackboneResult]) -> list[str]:
    return [one.backbone for one in rows]


def test_sort_by_score_best_first_then_fewest_macs() -> None:
    rows = [
        row("dear", range(30), num_macs=9),
        row("low", range(10), num_macs=1),
        row("cheap", range(1, 31), num_macs=3),
        row("high", range(31), num_macs=99),
    ]
    assert names(sort_by_score(rows)) == ["high", "cheap", "dear", "low"]


@pytest.mark.parametrize(("monitor", "first"), [("macro_f1", "b"), ("loss", "a")])
def test_sort_by_score_uses_monitor(monitor: str, first: str) -> None:
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


def test_significance_small_difference_is_not_significant() -> None:
    comparison = result(row("a", range(32)), row("b", range(1, 31), num_macs=5))
    assert comparison.p_values == [None, 0.5], "two discordant images of the same kind"
    first, second = summarize_significance(comparison).split(". ")
    assert first.startswith("b does not differ significantly from a ")
    assert str(NUM_VAL) in first
    assert second.startswith("The cheapest of these is b, ")


def test_significance_large_difference_is_significant() -> None:
    comparison = result(
        row("a", range(40)), row("b", range(30)), row("c", range(39)), row("d", [1])
    )
    summary = summarize_significance(comparison)
    similar, fewer = summary.split(". ")
    assert similar.startswith("c does not differ significantly from a ")
    assert re.fullmatch(r"a .*significantly more .* b and d \(p < 0\.05\)\.", fewer)
    assert comparison.to_json()["significance_summary"] == summary


def test_significance_many_backbones_are_holm_corrected() -> None:
    # 6 discordant images of the same kind have p = 1/32, which Holm multiplies by 3 below
    best = row("a", range(36))
    alone = result(best, row("b", range(30)))
    assert alone.p_values == [None, pytest.approx(1 / 32)]
    assert "significantly more" in summarize_significance(alone)
    among_others = result(best, *(row(f"b{number}", range(30)) for number in range(3)))
    assert among_others.p_values[1:] == [pytest.approx(3 / 32)] * 3
    assert summarize_significance(among_others).startswith("b0, b1 and b2 do not differ ")


def test_significance_better_score_with_fewer_correct_is_stated() -> None:
    best = row("a", range(10), monitor="macro_f1", metrics={"accuracy": 0.25, "macro_f1": 0.9})
    other = row("b", range(40), monitor="macro_f1", metrics={"accuracy": 1.0, "macro_f1": 0.5})
    summary = summarize_significance(result(best, other))
    assert re.fullmatch(r"b .*significantly more .* a .*worse macro F1\.", summary)


def test_summary_and_next_command_say_which_backbone_each_takes() -> None:
    comparison = result(row("a", range(30), num_macs=9), row("b", range(29), num_macs=1))
    summary = summarize_significance(comparison)
    assert "cheapest of these is b" in summary
    assert "the command below takes the one with the best accuracy" in summary
    assert comparison.next_command[3:5] == ["--backbone", "a"]


def label_row(name: str, value: float, **changes: Any) -> BackboneResult:
    """Return a row of multi-label images whose resampled scores are within 0.01 of a value."""
    resampled = value + np.linspace(-0.01, 0.01, 101) * (1 if name < "b" else -1)
    metrics = {"loss": 1 - value, "mean_average_precision": value, "micro_f1": 0.5}
    return row(
        name,
        [0],
        monitor="mean_average_precision",
        metrics={**metrics, **changes.pop("metrics", {})},
        precision=LabelPrecision(value, resampled, 30),
        **changes,
    )


def test_multi_label_rows_are_compared_by_mean_average_precision() -> None:
    comparison = result(label_row("a", 0.9), label_row("b", 0.895, num_macs=1), label_row("c", 0.5))
    assert names(comparison.rows) == ["a", "b", "c"]
    first, second, third = comparison.p_values
    assert first is None
    assert second is not None
    assert second > 0.05
    assert third is not None
    assert third < 0.05
    assert comparison.differences[0] is None
    low, high = comparison.differences[2] or (0, 0)
    assert low < -0.4 < high < 0
    summary = summarize_significance(comparison)
    assert summary.startswith("b does not differ significantly from a on the 40 validation")
    assert "best mean average precision" in summary
    assert summary.endswith(
        "a has a significantly higher mean average precision on the 40 validation images than c "
        "(p < 0.05)."
    )
    tree = comparison.to_json()
    assert "accuracy_interval" not in tree["backbones"][0]
    low, high = tree["backbones"][0]["mean_average_precision_interval"]
    assert low < 0.9 < high
    line = next(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert float(line["mean_average_precision_low"]) == low
    assert "accuracy_low" not in line
    stages = {"stage_accuracy_lead", "stage_loss_ratio"}
    assert not stages & set(line)
    of_classes = next(csv.DictReader(io.StringIO(result(row("a", range(3))).to_csv())))
    assert stages <= set(of_classes)


def test_multi_label_row_with_better_loss_and_lower_precision_is_stated() -> None:
    best = label_row("a", 0.5, metrics={"loss": 0.1})
    other = label_row("b", 0.9, metrics={"loss": 0.2})
    rows = [replace(one, monitor="loss") for one in (best, other)]
    assert summarize_significance(result(*rows)) == (
        "b has a significantly higher mean average precision on the 40 validation images than a "
        "(p < 0.05), but with a worse log loss."
    )


def test_compare_result_without_rows_has_no_summary_or_command() -> None:
    assert summarize_significance(result(row("a", range(3)))) == ""
    nothing = result(failures=(BackboneFailure("a", "broken.", 4),))
    tree = nothing.to_json()
    assert tree["backbones"] == tree["next_command"] == []
    assert (tree["significance_summary"], tree["sorted_by"]) == ("", None)
    assert tree["failures"] == [{"backbone": "a", "reason": "broken."}]


def test_next_command_has_best_backbone_weights_and_settings() -> None:
    settings = {"seed": 3, "imbalance.strategy": "sqrt", "model.kwargs": {"a": [1, None]}}
    rows = (row("a", range(3)), row("b", range(4)))
    command = result(*rows, settings=settings).next_command
    assert command[:7] == [
        "finetune", "fit", "my photos", "--backbone", "b", "--weights", "/weights/b.pth",
    ]  # fmt: skip
    assert parse_assignments(command[7:]) == settings
    assert "--weights" not in result(row("a", range(3), weights="hub")).next_command


def test_csv_has_line_per_backbone_and_failure() -> None:
    rows = (
        row("a", range(40), training_bytes=None),
        row("resnet50.a1_in1k", range(30), weights="hub"),
    )
    text = result(*rows, failures=(BackboneFailure("c", "broken, and how", 4),)).to_csv()
    first, second, last = csv.DictReader(io.StringIO(text))
    assert (first["backbone"], first["accuracy"], first["training_memory_gb"]) == ("a", "1.0", "")
    assert second["imagenet_top1_error"] == "18.786"
    assert float(second["accuracy_low"]) < 0.75 < float(second["accuracy_high"])
    assert float(second["p_value_vs_best"]) == pytest.approx(2 / 2**10)
    assert (last["backbone"], last["error"]) == ("c", "broken, and how")
