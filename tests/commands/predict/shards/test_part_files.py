"""Tests of parts: processes that complete a folder at the same time do not disturb each other."""

from pathlib import Path
from typing import Any

import pytest

from finetune.commands.predict.row_writers import ParquetWriter
from finetune.commands.predict.shards.sharded_prediction import ShardsResult
from tests.commands.predict.shards.test_sharded_prediction import predict, read_rows


@pytest.fixture
def complete(tiny: Path, many: Path, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Return the rows of a prediction by one process."""
    predict(tiny, many, tmp_path / "complete", part_size=8)
    return read_rows(tmp_path / "complete")


def test_process_that_ends_while_another_writes_a_marker_leaves_its_temporary_file(
    tiny: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    complete: list[tuple[Any, ...]],
) -> None:  # fmt: skip
    folder = tmp_path / "parts"
    predict(tiny, many, folder, 0, 2, part_size=8)
    write_text = Path.write_text
    others: list[ShardsResult | None] = []

    def write_late(self: Path, *args: Any, **settings: Any) -> int:
        num_bytes = write_text(self, *args, **settings)
        if self.name.startswith("._complete-") and not others:
            others.append(None)
            others.append(predict(tiny, many, folder, 0, 2))
        return num_bytes

    monkeypatch.setattr(Path, "write_text", write_late)
    result = predict(tiny, many, folder, 1, 2)
    assert others[-1] is not None
    assert others[-1].is_complete, "the other process has removed what killed ones left"
    assert result.is_complete
    assert read_rows(folder) == complete
    assert not list(folder.glob(".*"))


def test_part_that_another_start_has_completed_meanwhile_is_accepted(
    tiny: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    complete: list[tuple[Any, ...]],
) -> None:  # fmt: skip
    folder = tmp_path / "parts"
    close = ParquetWriter.close
    others: list[ShardsResult | None] = []

    def close_late(self: ParquetWriter) -> None:
        close(self)
        if not others:
            others.append(None)
            others.append(predict(tiny, many, folder))

    monkeypatch.setattr(ParquetWriter, "close", close_late)
    result = predict(tiny, many, folder, part_size=8)
    assert others[-1] is not None
    assert others[-1].is_complete
    assert result.is_complete
    assert read_rows(folder) == complete
    assert not list(folder.glob(".*"))
