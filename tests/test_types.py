"""The records with behaviour."""

import pytest

from finetune.types import LoadReport, Reporter, Split


def test_split_is_written_as_its_folder_is_called() -> None:
    assert [f"{split}" for split in Split] == ["train", "val", "test"]


@pytest.mark.parametrize(("loaded", "total", "share"), [(3, 4, 0.75), (4, 4, 1.0), (0, 0, 0.0)])
def test_load_report_share(loaded: int, total: int, share: float) -> None:
    assert LoadReport("file", loaded, total).loaded_fraction == share


def test_silent_is_a_reporter_that_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter: Reporter = Reporter()
    reporter.note("a")
    reporter.warn("b")
    reporter.show_plan({"c": 1})
    reporter.start("d", 2)
    reporter.advance()
    reporter.finish()
    reporter.show_epoch({"e": 1})
    assert capsys.readouterr() == ("", "")
