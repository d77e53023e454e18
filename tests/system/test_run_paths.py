"""Tests of the paths in a run folder."""

from pathlib import Path

import pytest

from finetune.system.run_paths import find_whole_folder


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("study/trials/001", "study"),
        ("study/trials/001/bundle", "study"),
        ("cv/folds/2/checkpoints", "cv"),
        ("cv/refit", "cv"),
        ("run/bundle", "run"),
        ("run", "run"),
        ("shared/bundle", "shared/bundle"),
        ("other/trials/001", "other/trials/001"),
    ],
)
def test_find_whole_folder_of_a_part(tmp_path: Path, part: str, whole: str) -> None:
    files = ("study/study.json", "study/trials/001/config.yaml", "cv/folds.csv", "run/config.yaml",
             "cv/folds/2/config.yaml", "cv/refit/config.yaml")  # fmt: skip
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_whole_folder(tmp_path / part) == tmp_path / whole
