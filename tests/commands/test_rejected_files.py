"""Tests of the words for files that a command leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import finetune
from finetune.errors import DataError
from tests.support.helpers import RecordingReporter, write_images

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


@pytest.mark.parametrize(
    ("num_missing", "expected"),
    [
        (1, "1 file left out: does not exist (gone 0.png)"),
        (4, "4 files left out: does not exist (4, such as gone 0.png)"),
    ],
)
def test_warning_names_the_reason_and_then_its_count(
    trained: FitResult, tmp_path: Path, num_missing: int, expected: str
) -> None:
    write_images(tmp_path, "a.png", "b.png")
    missing = [f"gone {number}.png,fly" for number in range(num_missing)]
    lines = ["path,label", "a.png,fly", "b.png,bée", *missing]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    reporter = RecordingReporter()
    bundle = trained.run_dir / "bundle"
    finetune.evaluate(bundle, tmp_path / "labels.csv", device="cpu", reporter=reporter)
    assert reporter.warnings == [expected]


def test_single_other_file_is_named_in_the_singular(trained: FitResult, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"\(1 other file\)"):
        finetune.predict(trained.run_dir, tmp_path, device="cpu")
