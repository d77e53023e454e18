"""Tests of the resolved config: its keys, its types and what it rejects."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from finetune.config.load import build_config, dump_config, read_config_file, replace_values
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import Config
from finetune.errors import ConfigError
from tests.support.runs import create_resolved_config


def test_resolved_config_has_the_keys_of_config_in_order() -> None:
    for name, field in Config.model_fields.items():
        section = field.annotation
        resolved_section = ResolvedConfig.model_fields[name].annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            assert isinstance(resolved_section, type)
            assert issubclass(resolved_section, section)
            assert list(resolved_section.model_fields) == list(section.model_fields)
    assert list(ResolvedConfig.model_fields) == list(Config.model_fields)


def test_resolved_config_yaml_round_trip(tmp_path: Path) -> None:
    resolved = create_resolved_config()
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(resolved), encoding="utf-8")
    plain = build_config(read_config_file(file))
    assert type(plain) is Config
    assert plain.model_dump() == resolved.model_dump()
    assert ResolvedConfig.from_config(plain) == resolved


def test_resolved_config_with_auto_raises_config_error_naming_the_keys() -> None:
    plain = Config.model_validate(create_resolved_config().model_dump())
    config = replace_values(plain, {"optim.layer_decay": "auto", "trainer.epochs": "auto"})
    with pytest.raises(ConfigError, match=r"optim\.layer_decay, trainer\.epochs"):
        ResolvedConfig.from_config(config)


def test_replace_values_keeps_the_type_of_a_resolved_config() -> None:
    resolved = replace_values(create_resolved_config(), {"trainer.epochs": 7})
    assert type(resolved) is ResolvedConfig
    assert resolved.trainer.epochs == 7


@pytest.mark.parametrize(
    ("settings", "is_probe_only"),
    [
        ({}, False),
        ({"unfreeze__name": "linear_probe"}, False),
        ({"probe__enabled": "on"}, False),
        ({"unfreeze__name": "linear_probe", "probe__enabled": "on"}, True),
    ],
)
def test_is_probe_only_needs_probe_and_linear_probe_schedule(
    settings: dict[str, str], is_probe_only: bool
) -> None:
    assert create_resolved_config(**settings).is_probe_only is is_probe_only


def test_num_micro_batches_counts_processes_and_accumulated_batches() -> None:
    config = create_resolved_config(
        trainer__devices=2, trainer__num_nodes=3, trainer__accumulate_grad_batches=4
    )
    assert (config.world_size, config.num_micro_batches) == (6, 24)
