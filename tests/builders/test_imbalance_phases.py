"""Whatever changes with the epoch says from when on it stays as it is."""

from typing import Any

import pytest

from finetune.builders.imbalance_phases import find_final_imbalance_phases
from finetune.config.imbalance import apply_imbalance_strategy
from tests.support.runs import listed, small_config

MANIFEST = listed({"a": 12, "b": 6, "c": 3})


def found(strategy: str, **settings: Any) -> dict[str, tuple[str, int]]:
    given = {"imbalance__strategy": strategy, "trainer__epochs": 10, **settings}
    return find_final_imbalance_phases(apply_imbalance_strategy(small_config(**given)), MANIFEST)


@pytest.mark.parametrize(
    ("strategy", "sampler", "class_weights"),
    [
        ("none", 0, 0),
        ("weighted", 0, 0),
        ("undersample", 0, 0),
        ("class_weights", 0, 0),
        ("logit_adjusted", 0, 0),
        ("drs", 8, 0),
        ("abundant_first", 5, 0),
        ("progressive", 9, 0),
        ("drw", 0, 8),
        ("ldam_drw", 0, 8),
    ],
)
def test_a_strategy_that_changes_is_named_with_the_epoch(
    strategy: str, sampler: int, class_weights: int
) -> None:
    parts = found(strategy)
    assert (parts["sampler"][1], parts["class_weights"][1]) == (sampler, class_weights)
    for name, start in parts.values():
        assert start == 0 or name == f"imbalance.strategy={strategy}"


def test_a_key_that_was_set_alone_is_named() -> None:
    parts = found(
        "none", imbalance__sampler="deferred", imbalance__sampler_params={"start_fraction": 0.3}
    )
    assert parts["sampler"] == ("imbalance.sampler=deferred", 3)
    parts = found(
        "none", imbalance__class_weights="balanced", imbalance__class_weights_start_fraction=0.5
    )
    assert parts["class_weights"] == ("imbalance.class_weights_start_fraction=0.5", 5)
    assert found("drs", trainer__epochs=1)["sampler"][1] == 0
