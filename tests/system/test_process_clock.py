"""Tests of the clock of the process, and of the result that shows it."""

import time
from typing import Any

import pytest

from finetune.cli.render.output import build_console_reporter, show_result
from finetune.system import process_clock


def test_result_has_the_seconds_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    tree = {"seconds": 39.0, "run_dir": "runs/a"}
    monkeypatch.setattr(process_clock, "_starts", [])
    show_result(build_console_reporter(), tree, shown.append)
    monkeypatch.setattr(process_clock, "_starts", [time.monotonic() - 60])
    show_result(build_console_reporter(), tree, shown.append)
    show_result(build_console_reporter(), {"run_dir": "runs/a"}, shown.append)
    assert shown[0] == tree
    assert shown[1]["seconds"] == pytest.approx(60, abs=5)
    assert shown[2] == {"run_dir": "runs/a"}


def test_clock_is_started_once_by_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_clock, "_starts", [])
    assert process_clock.measure_seconds() is None
    process_clock.start_clock()
    seconds = process_clock.measure_seconds()
    assert seconds is not None
    assert 0 <= seconds < 5
