"""Tests of the file with the choices of the folds for a network without validation images."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.measurement.refit_choice import (
    RefitChoice,
    read_refit_choice,
    write_refit_choice,
)
from finetune.errors import RunFolderError
from finetune.system.run_folder import RunFolder

VALUES = {"num_epochs": 3, "position": 0.5, "temperature": 1.2, "thresholds": [0.5, 0.25]}


@pytest.mark.parametrize("changes", [{}, {"position": None}, {"thresholds": None}])
def test_written_choice_is_read(changes: dict[str, Any], tmp_path: Path) -> None:
    choice = RefitChoice.from_json({**VALUES, **changes})
    write_refit_choice(RunFolder(tmp_path), choice)
    assert read_refit_choice(RunFolder(tmp_path)) == choice


@pytest.mark.parametrize(
    "tree",
    [
        [],
        None,
        3,
        "text",
        {},
        {**VALUES, "other": 1},
        {**VALUES, "num_epochs": "3"},
        {**VALUES, "temperature": None},
        {**VALUES, "position": []},
        {**VALUES, "thresholds": "0.5"},
        {**VALUES, "thresholds": 1},
    ],
)
def test_damaged_file_names_itself_and_a_remedy(tree: object, tmp_path: Path) -> None:
    (tmp_path / "refit.json").write_text(json.dumps(tree))
    with pytest.raises(RunFolderError, match=r"refit\.json is damaged: .* resume the cross-val"):
        read_refit_choice(RunFolder(tmp_path))
