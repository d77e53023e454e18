"""Checks that given paths exist."""

from pathlib import Path

import pytest

from finetune.errors import ConfigError, ModelError
from finetune.system.given_paths import (
    check_pipeline_path,
    check_weights_path,
    exists,
    is_file,
    is_folder,
)


def test_kinds_of_paths(tmp_path: Path) -> None:
    file, loop = tmp_path / "a.txt", tmp_path / "loop"
    file.touch()
    loop.symlink_to("loop")
    found = {path: (exists(path), is_file(path), is_folder(path)) for path in (tmp_path, file)}
    assert found == {tmp_path: (True, False, True), file: (True, True, False)}
    for missing in (loop, tmp_path / "gone", file / "inner", tmp_path / ("x" * 300)):
        assert [exists(missing), is_file(missing), is_folder(missing)] == [False] * 3


def test_too_long_names_do_not_exist() -> None:
    name = "x" * 300
    with pytest.raises(ModelError, match="x does not exist"):
        check_weights_path(name)
    with pytest.raises(ConfigError, match="x does not exist"):
        check_pipeline_path(Path(name))
