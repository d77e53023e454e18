"""Every shipped config is one that the command line takes, and says how it is run."""

from pathlib import Path

import pytest

from finetune.config.load import build_config, diff_from_defaults, read_config_file

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_a_shipped_config_is_valid_and_changes_something(file: Path) -> None:
    assert diff_from_defaults(build_config(read_config_file(file)))


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_its_head_holds_its_command(file: Path) -> None:
    assert f"finetune fit photos/ --config configs/{file.name}" in file.read_text(encoding="utf-8")


def test_there_are_configs() -> None:
    assert CONFIGS
