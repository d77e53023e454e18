"""What a person sees."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from finetune.cli.console import ConsoleReporter

if TYPE_CHECKING:
    from finetune.commands.fit import FitResult


def test_the_plan_says_what_trains_when_and_how(
    trained: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    ConsoleReporter().plan(trained.plan)
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
        "batch_in_memory": 32,
        "phases": [
            {"first_epoch": 1, "last_epoch": 1, "images_per_second": 812.3, "seconds": 61.2},
            {"first_epoch": 2, "last_epoch": 10, "images_per_second": 250.0, "seconds": 7200.0},
        ],
        "cache_seconds": 0.0,
        "seconds": 7261.2,
        **changes,
    }  # fmt: skip


def printed(plan: Any, capsys: pytest.CaptureFixture[str]) -> str:
    ConsoleReporter().plan(plan)
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
    reporter.pairs({"run": "[/]odd"})
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
    reporter = ConsoleReporter(json=True)
    reporter.note("note")
    reporter.plan(trained.plan)
    reporter.epoch(row())
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
    reporter.epoch(row())
    reporter.epoch(row(epoch=4))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    assert lines[0].split()[:3] == ["epoch", "train", "loss"]
    assert lines[1].split() == ["3", "0.5000", "0.5000", "0.9000", "0.5000", "0.5000", "1.3"]


def evaluation(num_classes: int) -> dict[str, Any]:
    return {
        "split": "test",
        "tta": False,
        "num_images": 40,
        "metrics": {"accuracy": 0.5},
        "per_class": {
            f"class {k}": {"support": k, "precision": None, "recall": 0.25, "f1": k / 100}
            for k in range(num_classes)
        },
    }


def test_the_weakest_classes_come_first_and_the_rest_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ConsoleReporter().evaluation(evaluation(40))
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.split()[0] == "class"][1:] == [
        str(k) for k in range(15)
    ]
    assert "The 15 weakest of 40 classes; all: --json" in out
    assert "undefined" in out
    assert "40 (test)" in out


def test_a_bar_is_for_terminals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    reporter.start("checking", 3)
    reporter.advance()
    reporter.finish()
    assert capsys.readouterr() == ("", "")

    screen = io.StringIO()
    reporter.errors = Console(file=screen, force_terminal=True, width=80)
    reporter.start("checking", 3)
    reporter.advance(2)
    reporter.finish()
    reporter.finish()
    assert "checking" in screen.getvalue()
    assert "2/3" in screen.getvalue()


def test_tta_is_shown_beside_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleReporter().evaluation(evaluation(2))
    assert "tta" not in capsys.readouterr().out
    ConsoleReporter().evaluation({**evaluation(2), "tta": True})
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
    ConsoleReporter().calibration(found)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(begin)
    assert "0.5000 -> 0.2500" in said
    assert "0.1000 -> 0.0500" in said
    assert "505 validation images" in said
