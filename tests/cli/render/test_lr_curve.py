"""Tests of the curve of a range test in the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finetune.cli.render.console import ConsoleReporter
from finetune.cli.render.lr_curve import build_lr_chart, describe_lr_test, show_lr_test


def build_test(**changes: Any) -> dict[str, Any]:
    """Return a test whose loss is 1 until 1e-4, falls to 0.5 at 1e-2 and diverges."""
    rates = np.geomspace(1e-7, 1.0, 100)
    losses = np.interp(np.log10(rates), [-7, -4, -2, -1, 0], [1.0, 1.0, 0.5, 1.0, 9.0])
    points = [
        {"lr": rate, "loss": loss, "smoothed_loss": loss}
        for rate, loss in zip(rates.tolist(), losses.tolist(), strict=True)
    ]
    return {
        "lr": 3e-4, "reason": "a step changes the features", "is_measured": True,
        "steepest_lr": 1e-3, "minimum_lr": 1e-2, "minimum_lr_divided_by_10": 1e-3,
        "is_diverged": True, "loss_limits": [0.4, 1.5], "points": points, **changes,
    }  # fmt: skip


def test_build_lr_chart_fits_into_80_columns() -> None:
    lines = build_lr_chart(build_test())
    assert 15 < len(lines) < 30
    assert max(map(len, lines)) <= 80


def test_build_lr_chart_places_losses_and_marks_by_their_rate() -> None:
    lines = build_lr_chart(build_test())
    axis = next(number for number, line in enumerate(lines) if "└" in line)
    chart, labels = lines[2:axis], lines[axis + 1]
    column_of = {rate: labels.index(rate) + len(rate) // 2 for rate in ("1e-4", "1e-2")}
    lowest = max(number for number, line in enumerate(chart) if "•" in line)
    assert abs(chart[lowest].index("•") - column_of["1e-2"]) <= 2
    first = next(number for number, line in enumerate(chart) if line[9:10] == "•")
    assert 3 < first < lowest  # the loss of 1 is between the limits and above the minimum
    assert "^" in chart[0]
    assert column_of["1e-4"] < lines[1].index("M") < lines[1].index("S") < column_of["1e-2"]


def test_build_lr_chart_without_suggestions_marks_the_rate_of_the_run_only() -> None:
    test = build_test(steepest_lr=None, minimum_lr=None, minimum_lr_divided_by_10=None)
    lines = build_lr_chart(test)
    assert lines[1].strip() == "M"
    assert [line.split()[0] for line in lines[-1:]] == ["M"]
    assert "suggests no rate" in " ".join(describe_lr_test(test))


@pytest.mark.parametrize(("is_measured", "word"), [(True, "(measured"), (False, "(not measured")])
def test_describe_lr_test_tells_the_rate_of_the_run(is_measured: bool, word: str) -> None:
    line = describe_lr_test(build_test(is_measured=is_measured))[0]
    assert "0.0003" in line
    assert word in line


def test_show_lr_test_prints_files_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    tree = {"run_dir": "runs/a b", "lr_find": build_test(), "files": ["runs/a b/lr_find.csv"]}
    show_lr_test(ConsoleReporter(), tree)
    out = capsys.readouterr().out
    assert "runs/a b/lr_find.csv" in out
    assert "finetune fit --resume 'runs/a b' --lr RATE\n" in out
