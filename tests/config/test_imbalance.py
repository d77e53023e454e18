"""Tests of the imbalance strategies: their parts, contradictions and double corrections."""

from typing import Any

import pytest

from finetune.config.facts import Facts
from finetune.config.imbalance import (
    IMBALANCE_STRATEGIES,
    apply_imbalance_strategy,
    check_imbalance,
    choose_imbalance_strategy,
)
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.errors import ConfigError


def apply(**settings: Any) -> Config:
    """Return a config with its strategy written out; ``section__key`` is a dotted key."""
    assignments = {"imbalance.strategy": "none"}  # as "auto" with other imbalance keys
    assignments |= {key.replace("__", "."): value for key, value in settings.items()}
    return apply_imbalance_strategy(build_config({}, assignments=assignments))


def get_parts(config: Config) -> tuple[str, str, str, float | str]:
    imbalance = config.imbalance
    return (
        imbalance.sampler,
        config.loss.name,
        imbalance.class_weights,
        imbalance.class_weights_start_fraction,
    )


@pytest.mark.parametrize("name", IMBALANCE_STRATEGIES)
def test_apply_strategy_writes_its_parts_and_is_idempotent(name: str) -> None:
    config = apply(imbalance__strategy=name)
    strategy = IMBALANCE_STRATEGIES[name]
    assert get_parts(config) == (
        strategy.sampler,
        strategy.loss,
        strategy.class_weights,
        strategy.class_weights_start_fraction,
    )
    assert apply_imbalance_strategy(config) == config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("uniform", "cross_entropy", "none", 0.0)),
        ({"imbalance__strategy": "drw"}, ("uniform", "cross_entropy", "effective_number", 0.8)),
        (
            {"imbalance__strategy": "drw", "imbalance__class_weights_start_fraction": 0.5},
            ("uniform", "cross_entropy", "effective_number", 0.5),
        ),
        (
            {"imbalance__strategy": "drw", "imbalance__class_weights": "balanced"},
            ("uniform", "cross_entropy", "balanced", 0.8),
        ),
        (
            {
                "imbalance__strategy": "drw",
                "imbalance__class_weights": "balanced",
                "imbalance__class_weights_start_fraction": 0.0,
            },
            ("uniform", "cross_entropy", "balanced", 0.0),
        ),
        (
            {"imbalance__strategy": "weighted", "imbalance__head_rebalancing": "crt"},
            ("weighted", "cross_entropy", "none", 0.0),
        ),
        (
            {"imbalance__strategy": "focal", "imbalance__class_weights": "balanced"},
            ("uniform", "focal", "balanced", 0.0),
        ),
        ({"imbalance__sampler": "sqrt"}, ("sqrt", "cross_entropy", "none", 0.0)),
        (
            {"imbalance__strategy": "weighted", "loss__name": "mine:loss"},
            ("weighted", "mine:loss", "none", 0.0),
        ),
        (
            {
                "imbalance__strategy": "logit_adjusted",
                "imbalance__sampler": "sqrt",
                "imbalance__allow_double_correction": True,
            },
            ("sqrt", "logit_adjusted", "none", 0.0),
        ),
    ],
)
def test_apply_strategy_explicit_parts_are_kept(
    settings: dict[str, Any], expected: tuple[str, str, str, float]
) -> None:
    assert get_parts(apply(**settings)) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"imbalance__strategy": "weighted", "imbalance__class_weights": "balanced"},
            r"^imbalance\.sampler=weighted .*imbalance\.class_weights=balanced .*"
            r"imbalance\.strategy=weighted.*imbalance\.allow_double_correction=true",
        ),
        (
            {"imbalance__strategy": "logit_adjusted", "imbalance__sampler": "undersample"},
            r"imbalance\.sampler=undersample .*loss\.name=logit_adjusted",
        ),
        (
            {"imbalance__strategy": "drw", "loss__name": "logit_adjusted"},
            r"imbalance\.class_weights=effective_number .*loss\.name=logit_adjusted",
        ),
        (
            {"imbalance__strategy": "drs", "loss__name": "logit_adjusted"},
            r"imbalance\.sampler=deferred .*loss\.name=logit_adjusted",
        ),
        (
            {"imbalance__sampler": "mine:sampler", "imbalance__class_weights": "balanced"},
            r"imbalance\.sampler=mine:sampler .*imbalance\.class_weights=balanced",
        ),
        (
            {"imbalance__strategy": "focal", "loss__name": "ldam"},
            r"^loss\.name=ldam .*imbalance\.strategy=focal",
        ),
        (
            {"imbalance__strategy": "ldam_drw", "loss__name": "cross_entropy"},
            r"^loss\.name=cross_entropy .*imbalance\.strategy=ldam_drw",
        ),
        (
            {"imbalance__strategy": "weighted", "imbalance__sampler": "uniform"},
            r"^imbalance\.sampler=uniform .*imbalance\.strategy=weighted",
        ),
        (
            {"imbalance__strategy": "drs", "imbalance__sampler": "sqrt"},
            r"^imbalance\.sampler=sqrt .*imbalance\.strategy=drs.*deferred",
        ),
        (
            {"imbalance__strategy": "drw", "imbalance__class_weights": "none"},
            r"^imbalance\.class_weights=none .*imbalance\.strategy=drw.*effective_number",
        ),
        (
            {"imbalance__strategy": "crt", "imbalance__head_rebalancing": "none"},
            r"^imbalance\.head_rebalancing=none .*imbalance\.strategy=crt",
        ),
        (
            {"imbalance__strategy": "post_hoc", "imbalance__head_rebalancing": "tau_norm"},
            r"^imbalance\.head_rebalancing=tau_norm .*imbalance\.strategy=post_hoc",
        ),
        (
            {"imbalance__class_weights_start_fraction": 0.5},
            r"^imbalance\.class_weights_start_fraction=0\.5 .*imbalance\.class_weights=none",
        ),
        (
            {"imbalance__strategy": "focal", "imbalance__class_weights_params": {"beta": 0.9}},
            r"^imbalance\.class_weights_params=.*0\.9.*imbalance\.class_weights=none",
        ),
    ],
)
def test_apply_strategy_conflict_raises_config_error_naming_both_keys(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        apply(**settings)


def test_check_imbalance_finds_conflicts_before_auto_is_resolved() -> None:
    check_imbalance(build_config({}))
    check_imbalance(build_config({}, assignments={"imbalance.class_weights": "balanced"}))
    both = {"imbalance.class_weights": "balanced", "imbalance.sampler": "weighted"}
    with pytest.raises(
        ConfigError, match=r"imbalance\.sampler=weighted .*imbalance\.class_weights=balanced"
    ):
        check_imbalance(build_config({}, assignments=both))
    check_imbalance(
        build_config({}, assignments={**both, "imbalance.allow_double_correction": True})
    )
    conflict = {"imbalance.strategy": "ldam", "loss.name": "focal"}
    with pytest.raises(ConfigError, match=r"loss\.name=focal .*imbalance\.strategy=ldam"):
        check_imbalance(build_config({}, assignments=conflict))


@pytest.mark.parametrize("strength", [0.5, 0.0, "held_out"])
def test_post_hoc_strength_needs_post_hoc(strength: float | str) -> None:
    for strategy in ("none", "weighted", "crt"):
        with pytest.raises(ConfigError, match=r"^imbalance\.post_hoc_strength=.* cannot apply"):
            apply(imbalance__strategy=strategy, imbalance__post_hoc_strength=strength)
    apply(imbalance__strategy="post_hoc", imbalance__post_hoc_strength=strength)
    # the images decide whether "auto" is post_hoc
    check_imbalance(build_config({}, assignments={"imbalance.post_hoc_strength": strength}))


@pytest.mark.parametrize(
    ("settings", "counts", "reason"),
    [
        ({"loss.name": "mse"}, (30, 30), "imbalance ratio 1"),
        ({"loss.name": "focal"}, (60, 3), "imbalance ratio 20, but loss.name is given"),
        ({"imbalance.sampler": "sqrt"}, (60, 3), "imbalance.sampler is given"),
        ({"imbalance.class_weights": "balanced"}, (30, 30), "imbalance.class_weights is given"),
    ],
)
def test_reason_for_no_strategy_names_what_was_given(
    settings: dict[str, str], counts: tuple[int, ...], reason: str
) -> None:
    facts = Facts(
        class_counts=counts,
        is_pretrained=True,
        num_groups=5,
        image_size=224,
        has_fast_bf16=False,
        free_cores=2,
    )
    choice = choose_imbalance_strategy(build_config({}, assignments=settings), facts)
    assert (choice.value, choice.reason) == ("none", reason)
