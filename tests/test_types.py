"""Tests of the records with behaviour, and of the silent reporter."""

import pytest

from finetune.types import LoadReport, Reporter, Split


def test_split_format_gives_folder_name() -> None:
    assert [f"{split}" for split in Split] == ["train", "val", "test"]


@pytest.mark.parametrize(("loaded", "total", "fraction"), [(3, 4, 0.75), (4, 4, 1.0), (0, 0, 0.0)])
def test_load_report_loaded_fraction_is_ratio(loaded: int, total: int, fraction: float) -> None:
    assert LoadReport("file", loaded, total).loaded_fraction == fraction


def test_reporter_base_class_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter: Reporter = Reporter()
    reporter.note("a")
    reporter.warn("b")
    reporter.show_plan({"c": 1})
    reporter.start("d", 2)
    reporter.advance()
    reporter.finish()
    reporter.show_probe({"e": 1})
    reporter.show_epoch({"f": 1})
    assert capsys.readouterr() == ("", "")
