"""Tests of ``finetune.cli.render.console``."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from finetune.cli.render.console import ConsoleReporter

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


def test_show_plan_has_data_model_and_phases(
    trained: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    ConsoleReporter().show_plan(trained.plan)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for part in ("24 train, 7 val, 7 test", "3 classes", "resnet10t", "random", "32 px"):
        assert part in out
    first_phase, last_phase = (line.split() for line in out.splitlines()[-2:])
    assert first_phase[:3] == ["1", "head", "1,539"]
    assert "(6 groups)" in " ".join(last_phase)
    assert last_phase[-1] == "train"


def build_cost(**changes: Any) -> dict[str, Any]:
    return {
        "memory_gb": {
            "parameters": 0.094, "gradients": 0.094, "optimizer": 0.188, "activations": 7.2,
            "total": 7.576, "free": 21.4,
        },
        "micro_batch_size": 32,
        "phases": [
            {"first_epoch": 1, "last_epoch": 1, "images_per_second": 812.3, "seconds": 61.2},
            {"first_epoch": 2, "last_epoch": 10, "images_per_second": 250.0, "seconds": 7200.0},
        ],
        "cache_fill_seconds": 0.0,
        "seconds": 7261.2,
        **changes,
    }  # fmt: skip


def print_plan(plan: Any, capsys: pytest.CaptureFixture[str]) -> str:
    ConsoleReporter().show_plan(plan)
    return " ".join(capsys.readouterr().out.split())


def test_show_plan_has_memory_and_time(
    trained: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    text = print_plan({**trained.plan, "cost": build_cost()}, capsys)
    for part in ("7.6 GB", "32 images", "parameters 94 MB", "gradients 94 MB", "optimizer 188 MB",
                 "activations 7.2 GB", "21 GB free"):  # fmt: skip
        assert part in text
    for part in (
        "about 2.0 h",
        "epoch 1 61 s at 812 images/s",
        "epochs 2-10 2.0 h at 250 images/s",
    ):
        assert part in text
    unknown = {**build_cost()["memory_gb"], "free": None}
    cost = build_cost(memory_gb=unknown, cache_fill_seconds=240.0, seconds=1380.0)
    text = print_plan({**trained.plan, "cost": cost}, capsys)
    assert " free" not in text
    assert "about 23 min" in text
    assert "cache 4 min" in text
    without_cost = {key: value for key, value in trained.plan.items() if key != "cost"}
    assert "memory" not in print_plan(without_cost, capsys), "the plan of a resumed run has no cost"


def test_square_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    reporter.note("runs/[bold]x[/bold] is [red]")
    reporter.print_pairs({"run": "[/]odd"})
    assert capsys.readouterr().out.split() == [
        "runs/[bold]x[/bold]",
        "is",
        "[red]",
        "run",
        "[/]odd",
    ]
    reporter.warn("a [/]")
    reporter.error("b [/]")
    assert capsys.readouterr().err.splitlines() == ["warning: a [/]", "error: b [/]"]


def test_json_output_reserves_standard_output(
    trained: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = ConsoleReporter(json_output=True)
    reporter.note("note")
    reporter.show_plan(trained.plan)
    reporter.show_epoch(build_row())
    out, err = capsys.readouterr()
    assert out == ""
    assert "note" in err
    assert "90.0%" in err


def build_row(**values: float) -> dict[str, float]:
    numbers = dict.fromkeys(
        (
            "train/loss",
            "val/loss",
            "val/calibrated_loss",
            "val/balanced_accuracy",
            "val/macro_f1",
        ),
        0.5,
    )
    return {"epoch": 3, "seconds": 1.26, "val/accuracy": 0.9, **numbers, **values}


def test_show_epoch_prints_aligned_rows_under_one_header(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = ConsoleReporter()
    reporter.show_epoch(build_row())
    reporter.show_epoch(build_row(epoch=4))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    assert lines[0].split()[:3] == ["epoch", "train", "loss"]
    numbers = ["0.5000", "0.5000", "0.5000", "90.0%", "50.0%", "50.0%"]
    assert lines[1].split() == ["3", *numbers, "1.3"]
    assert len(lines[0]) <= 80


def test_show_epoch_without_validation_has_columns_and_a_header_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As in the refit after the folds of a cross-validation."""
    reporter = ConsoleReporter()
    sample = {"train_eval/loss": 0.25, "train_eval/accuracy": 1.0}
    reporter.show_epoch(build_row(**sample))
    capsys.readouterr()
    for epoch in (1, 2):
        reporter.show_epoch({"epoch": epoch, "train/loss": 0.5, "seconds": 1.26})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["epoch", "train", "loss", "seconds"], ["1", "0.5000", "1.3"], ["2", "0.5000", "1.3"],
    ]  # fmt: skip


def test_show_epoch_has_training_images_beside_validation_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Measured alike, they can be compared; the loss that is optimised cannot."""
    reporter = ConsoleReporter()
    sample = {"train_eval/loss": 0.25, "train_eval/accuracy": 1.0}
    reporter.show_epoch(build_row(**sample, **{"val/loss": 123456.0}))
    groups, titles, cells = capsys.readouterr().out.splitlines()
    assert groups.split() == ["log", "loss", "accuracy"]
    assert titles.split()[:6] == ["epoch", "train", "val", "cal.", "train", "val"]
    assert cells.split()[:6] == ["3", "0.2500", "1.2e+05", "0.5000", "100.0%", "90.0%"]
    assert titles.index("cal.") < groups.index("accuracy") < titles.index("balanced")
    assert len(titles) == len(cells) <= 80

    labels = {"train_eval/mean_average_precision": 0.75, "val/mean_average_precision": 0.5}
    reporter = ConsoleReporter()
    reporter.show_epoch({**build_row(**sample), **labels})
    groups, titles, cells = capsys.readouterr().out.splitlines()
    assert "mAP" in groups
    assert cells.split()[4:6] == ["75.0%", "50.0%"]
    assert len(titles) == len(cells) <= 80


def build_evaluation(num_classes: int, **changes: Any) -> dict[str, Any]:
    return {
        "split": "test",
        "tta": False,
        "prior": {"target_prior": "uniform"},
        "num_images": 40,
        "metrics": {"accuracy": 0.5, "rarest_third_recall": None},
        "accuracy_interval": [0.352, 0.648],
        "rarest_third": {"classes": ["class 1"], "ranked_by": "train_images"},
        "num_classes_averaged": {"balanced_accuracy": 1, "macro_f1": 2, "rarest_third_recall": 0},
        "per_class": {
            f"class {k}": {
                "train_images": 500 - k,
                "support": k,
                "precision": 0.5,
                "recall": 0.25,
                "recall_interval": [0.1, 0.4],
                "f1": k / 1000,
            }
            for k in range(num_classes)
        },
        **changes,
    }


def parse_classes(out: str) -> list[str]:
    return [line.split()[1] for line in out.splitlines() if line.startswith("class ")][1:]


def test_show_evaluation_lists_classes_by_f1(capsys: pytest.CaptureFixture[str]) -> None:
    result = build_evaluation(40)
    result["per_class"] = dict(reversed(result["per_class"].items()))
    ConsoleReporter().show_evaluation(result)
    out = capsys.readouterr().out
    assert parse_classes(out) == [str(k) for k in range(40)]
    assert "--json" not in out, "no class is left out"
    assert "40 (test)" in out
    assert "50.0%  (95% interval 35.2-64.8%)" in out
    assert "undefined  (class 1; " in out
    assert "undefined:" not in out, "nothing in the table is undefined"


def test_show_evaluation_many_classes_lists_weakest_and_rarest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ConsoleReporter().show_evaluation(build_evaluation(41))
    out = capsys.readouterr().out
    assert parse_classes(out) == [str(k) for k in (*range(15), *range(26, 41))]
    text = " ".join(out.split())
    assert "11 of 41 classes" in text
    assert "--json" in text


def test_show_evaluation_explains_undefined_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    result = build_evaluation(3)
    result["per_class"]["class 0"] |= {"recall": None, "recall_interval": None}
    result["per_class"]["class 1"] |= {"precision": None, "f1": None}
    ConsoleReporter().show_evaluation(result)
    out = capsys.readouterr().out
    assert parse_classes(out) == ["0", "2", "1"]
    text = " ".join(out.split())
    assert "undefined:" in text
    assert "balanced_accuracy is over 1 of 3 classes, macro_f1 over 2" in text
    assert "rarest_third_recall over 0 of 1." in text
    ConsoleReporter().show_evaluation(result, show_classes=False)
    out = capsys.readouterr().out
    assert parse_classes(out) == []
    assert text.endswith(" ".join(out.split())[-60:]), "also without the class table"


@pytest.mark.parametrize("length", [3, 16, 17, 60])
def test_show_evaluation_fits_80_columns(
    length: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = build_evaluation(45)
    stats = result["per_class"].pop("class 1")
    unknown = {"precision": None, "recall": None, "recall_interval": None, "f1": None}
    result["per_class"]["ß" * length] = stats | unknown | {"train_images": 1}
    result["rarest_third"]["classes"] = ["ß" * length] * 15
    ConsoleReporter().show_evaluation(result)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("ß") for line in lines) >= length, "wrapped, not truncated"


def test_progress_bar_only_on_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    reporter.start("checking", 3)
    reporter.advance()
    reporter.finish()
    assert capsys.readouterr() == ("", "")

    screen = io.StringIO()
    reporter.err_console = Console(file=screen, force_terminal=True, width=80)
    reporter.start("checking", 3)
    reporter.advance(2)
    reporter.finish()
    reporter.finish()
    assert "checking" in screen.getvalue()
    assert "2/3" in screen.getvalue()


def test_note_is_wrapped_where_the_width_is_known_and_whole_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"Run folder: /{'long/' * 20}run (60 s, of which the last stage took half)"
    monkeypatch.delenv("COLUMNS", raising=False)
    ConsoleReporter().note(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setenv("COLUMNS", "60")
    ConsoleReporter().note(text)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "(60 s, of which the last stage took half)"
    assert " ".join(lines) == text


def test_show_evaluation_states_tta(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleReporter().show_evaluation(build_evaluation(2))
    assert "tta" not in capsys.readouterr().out
    ConsoleReporter().show_evaluation({**build_evaluation(2), "tta": True})
    assert "tta" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.7314, "Temperature 0.731; cross-fitted on 505 validation images: log loss "
         "0.5000 -> 0.2500, calibration error 10.0% -> 5.0%"),
        (1.0, "The fitted temperature 0.731 is not used, as it does not lower the log loss: "
         "cross-fitted on 505 validation images, the log loss is 0.5000 without it and 0.2500 with "
         "it, the calibration error 10.0% without it and 5.0% with it"),
    ],
)  # fmt: skip
def test_show_calibration_states_the_effect_or_why_the_temperature_is_not_used(
    temperature: float, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {
        "temperature": temperature,
        "fitted_temperature": 0.7314,
        "num_images": 505,
        "num_folds": 5,
        "before": {"loss": 0.5, "calibration_error": 0.1},
        "after": {"loss": 0.25, "calibration_error": 0.05},
    }
    ConsoleReporter().show_calibration(result)
    assert " ".join(capsys.readouterr().out.split()) == expected


def probe_result(**changes: Any) -> dict[str, Any]:
    return {
        "cross_validated_accuracy": 0.8738,
        "folds": {
            "num_folds": 5,
            "num_held_out_folds": 5,
            "num_groups": 0,
            "num_held_out_images": 42,
        },
        "l2_penalty": 1e-6,
        "num_images": 117,
        "num_train_images": 42,
        "num_images_computed": 117,
        "last_stage_epochs": None,
        "head_metrics": {"accuracy": 0.8},
        "metrics": {"accuracy": 0.9},
        "seconds": 2.2,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ["87.4%", "42 training images", "L2 1e-6", "2 s"]),
        ({"num_images_computed": 78}, ["39 of 117 images"]),
        (
            {"folds": {"num_folds": 5, "num_held_out_folds": 1, "num_groups": 312}},
            ["1 of 5 folds, 312 groups kept together"],
        ),
        ({"last_stage_epochs": 3}, ["90.0%", "epoch 3", "80.0%"]),
        ({"last_stage_epochs": 0}, ["80.0%"]),
    ],
)
def test_show_probe_has_accuracy_penalty_and_duration(
    changes: dict[str, Any], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ConsoleReporter().show_probe(probe_result(**changes))
    text = " ".join(capsys.readouterr().out.split())
    assert [part for part in parts if part not in text] == []
