"""What a person sees."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from finetune.cli.render.console import ConsoleReporter

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


def test_the_plan_says_what_trains_when_and_how(
    trained: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    ConsoleReporter().show_plan(trained.plan)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for part in ("24 train, 7 val, 7 test", "3 classes", "resnet10t", "random", "best by", "32 px"):
        assert part in out
    head, whole = (line.split() for line in out.splitlines()[-2:])
    assert head[:3] == ["1", "head", "1,539"]
    assert "(6 groups)" in " ".join(whole)
    assert whole[-1] == "train"


def cost_of(**changes: Any) -> dict[str, Any]:
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


def printed(plan: Any, capsys: pytest.CaptureFixture[str]) -> str:
    ConsoleReporter().show_plan(plan)
    return " ".join(capsys.readouterr().out.split())


def test_the_plan_says_what_memory_and_time_it_takes(
    trained: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    said = printed({**trained.plan, "cost": cost_of()}, capsys)
    assert (
        "memory 7.6 GB in each process for 32 images (0.094 parameters, 0.094 gradients, 0.19 "
        "optimizer, 7.2 activations); 21.4 GB are free" in said
    )
    assert (
        "time about 2.0 h: 61 s for epoch 1 at 812 images/s, 2.0 h for epochs 2-10 at 250 images/s"
        in said
    )
    unknown = {**cost_of()["memory_gb"], "free": None}
    said = printed(
        {**trained.plan, "cost": cost_of(memory_gb=unknown, cache_seconds=240.0, seconds=1380.0)},
        capsys,
    )
    assert "are free" not in said
    assert "about 23 min: 4 min to decode, 61 s" in said
    without = {key: value for key, value in trained.plan.items() if key != "cost"}
    assert "memory" not in printed(without, capsys), "a resumed run was measured before"


def test_square_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_with_json_nothing_but_the_object_goes_to_standard_output(
    trained: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = ConsoleReporter(json_output=True)
    reporter.note("note")
    reporter.show_plan(trained.plan)
    reporter.show_epoch(row())
    out, err = capsys.readouterr()
    assert out == ""
    assert "note" in err
    assert "0.9000" in err


def row(**values: float) -> dict[str, float]:
    numbers = dict.fromkeys(
        ("train/loss", "val/loss", "val/balanced_accuracy", "val/macro_f1"), 0.5
    )
    return {"epoch": 3, "seconds": 1.26, "val/accuracy": 0.9, **numbers, **values}


def test_a_row_an_epoch_under_one_head(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    reporter.show_epoch(row())
    reporter.show_epoch(row(epoch=4))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    assert lines[0].split()[:3] == ["epoch", "train", "loss"]
    assert lines[1].split() == ["3", "0.5000", "0.5000", "0.9000", "0.5000", "0.5000", "1.3"]


def evaluation(num_classes: int, **changes: Any) -> dict[str, Any]:
    return {
        "split": "test",
        "tta": False,
        "prior": {"target_prior": "every class alike"},
        "num_images": 40,
        "metrics": {"accuracy": 0.5, "rarest_third_recall": None},
        "accuracy_interval": [0.352, 0.648],
        "rarest_third": {"classes": ["class 1"], "by": "training images"},
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


def shown_classes(out: str) -> list[str]:
    return [line.split()[1] for line in out.splitlines() if line.startswith("class ")][1:]


def test_all_classes_are_shown_the_weakest_first(capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluation(40)
    result["per_class"] = dict(reversed(result["per_class"].items()))
    ConsoleReporter().show_evaluation(result)
    out = capsys.readouterr().out
    assert shown_classes(out) == [str(k) for k in range(40)]
    assert "not shown" not in out
    assert "40 (test)" in out
    assert "0.5000  (95% interval 0.352-0.648)" in out
    assert "undefined  (class 1; fewest training images)" in out
    assert "no recall" not in out, "nothing in the table is undefined"


def test_of_many_classes_the_weakest_and_the_rarest_are_shown_and_the_rest_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ConsoleReporter().show_evaluation(evaluation(41))
    out = capsys.readouterr().out
    assert shown_classes(out) == [str(k) for k in (*range(15), *range(26, 41))]
    said = " ".join(out.split())
    assert "15 classes of lowest F1 and the 15 rarest; 11 of 41 are not shown. All: --json" in said


def test_what_is_undefined_is_said_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluation(3)
    result["per_class"]["class 0"] |= {"recall": None, "recall_interval": None}
    result["per_class"]["class 1"] |= {"precision": None, "f1": None}
    ConsoleReporter().show_evaluation(result)
    out = capsys.readouterr().out
    assert shown_classes(out) == ["0", "2", "1"]
    said = " ".join(out.split())
    assert "a class without images here has no recall" in said
    assert "balanced_accuracy is over 1 of 3 classes, macro_f1 over 2" in said
    assert "rarest_third_recall over 0 of 1." in said
    ConsoleReporter().show_evaluation(result, show_classes=False)
    out = capsys.readouterr().out
    assert shown_classes(out) == []
    assert said.endswith(" ".join(out.split())[-60:]), "also where the table is not shown"


@pytest.mark.parametrize("length", [3, 16, 17, 60])
def test_an_evaluation_fits_80_columns(
    length: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = evaluation(45)
    stats = result["per_class"].pop("class 1")
    unknown = {"precision": None, "recall": None, "recall_interval": None, "f1": None}
    result["per_class"]["ß" * length] = stats | unknown | {"train_images": 1}
    result["rarest_third"]["classes"] = ["ß" * length] * 15
    ConsoleReporter().show_evaluation(result)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("ß") for line in lines) >= length, "broken, and not cut"


def test_a_bar_is_for_terminals_alone(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_tta_is_shown_beside_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleReporter().show_evaluation(evaluation(2))
    assert "tta" not in capsys.readouterr().out
    ConsoleReporter().show_evaluation({**evaluation(2), "tta": True})
    assert "mirror" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("temperature", "begin"),
    [(0.7314, "temperature 0.731; 505 "), (1.0, "temperature 1, as 0.731 does not help; 505 ")],
)
def test_a_temperature_is_shown_with_what_it_is_worth(
    temperature: float, begin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {
        "temperature": temperature,
        "fitted": 0.7314,
        "num_images": 505,
        "num_folds": 5,
        "before": {"loss": 0.5, "calibration_error": 0.1},
        "after": {"loss": 0.25, "calibration_error": 0.05},
    }
    ConsoleReporter().show_calibration(found)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(begin)
    assert "0.5000 -> 0.2500" in said
    assert "0.1000 -> 0.0500" in said
    assert "505 validation images" in said
