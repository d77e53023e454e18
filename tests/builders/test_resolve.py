"""Ways of sharing a network that do not fit a run are refused with the reason."""

from typing import Any

import pytest

from finetune.builders.resolve import check_strategy
from finetune.config.load import build_config
from finetune.errors import ConfigError


def check(strategy: str, depths: list[int], swa_fraction: float = 0, **trainer: Any) -> None:
    settings = {
        "strategy": strategy,
        "accelerator": "cuda",
        "devices": 2,
        "num_nodes": 1,
        **trainer,
    }
    tree = {
        "trainer": settings,
        "unfreeze": {"name": "gradual"},
        "optim": {"swa_fraction": swa_fraction},
    }
    check_strategy(build_config(tree), depths)


def test_ddp_takes_any_schedule() -> None:
    check("ddp", [1, 4, 6], accelerator="cpu", devices=1)


def test_fsdp_on_gpus_takes_a_schedule_with_one_depth() -> None:
    check("fsdp", [6])
    check("fsdp", [1, 1])


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_shards_do_not_go_with_a_depth_that_changes(strategy: str) -> None:
    reason = rf"{strategy} cannot apply to unfreeze\.name=gradual, whose depth changes.*shards once"
    with pytest.raises(ConfigError, match=reason):
        check(strategy, [1, 6])


@pytest.mark.parametrize(
    ("strategy", "trainer", "reason"),
    [
        ("deepspeed", {}, r"folders of shards.*Take trainer\.strategy=fsdp"),
        ("fsdp", {"accelerator": "cpu"}, r"accelerator=cpu: Lightning shards on GPUs only"),
        ("fsdp", {"devices": 1}, r"one process, which has nobody to share with"),
        ("fsdp", {"compile": True}, r"together with trainer\.compile"),
        ("fsdp", {"swa_fraction": 0.5}, r"together with optim\.swa_fraction=0\.5: no process"),
    ],
)
def test_what_else_does_not_go_with_shards(
    strategy: str, trainer: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        check(strategy, [6], **trainer)
