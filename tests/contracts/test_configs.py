"""Shipped configs: each is valid and documents its command."""

from pathlib import Path

import pytest
import yaml

from finetune.config.load import build_config, diff_from_defaults, read_config_file

SWEEP = Path(__file__).parents[2] / "configs" / "sweep.yaml"
"""Sweep of Weights & Biases, tested with the commands of its agent."""

CONFIGS = sorted(file for file in SWEEP.parent.glob("*.yaml") if file != SWEEP)


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_shipped_config_is_valid_and_differs_from_defaults(file: Path) -> None:
    assert diff_from_defaults(build_config(read_config_file(file)))


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_shipped_config_documents_its_command(file: Path) -> None:
    assert f"finetune fit photos/ --config configs/{file.name}" in file.read_text(encoding="utf-8")


def test_sweep_searches_keys_of_the_config_within_their_ranges() -> None:
    sweep = yaml.safe_load(SWEEP.read_text(encoding="utf-8"))
    assert "optim.lr" not in sweep["parameters"]  # one range cannot suit every backbone
    for key, drawn in sweep["parameters"].items():
        for value in drawn.get("values") or (drawn["min"], drawn["max"]):
            build_config({}, assignments={key: value})


def test_shipped_configs_exist() -> None:
    assert CONFIGS
