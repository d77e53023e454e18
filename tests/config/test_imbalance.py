"""A strategy becomes a sampler, a loss and class weights, and no correction is made twice."""

from typing import Any

import pytest

from finetune.config.imbalance import (
    IMBALANCE_STRATEGIES,
    apply_imbalance_strategy,
    check_imbalance,
)
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.errors import ConfigError


def resolved(**settings: Any) -> Config:
    """Return a config with its strategy written out; ``section__key`` names a key of the tree."""
    given = {"imbalance.strategy": "none"}  # as "auto" decides where something else is asked for
    given |= {key.replace("__", "."): value for key, value in settings.items()}
    return apply_imbalance_strategy(build_config({}, assignments=given))


def parts(config: Config) -> tuple[str, str, str, float | str]:
    chosen = config.imbalance
    return (
        chosen.sampler,
        config.loss.name,
        chosen.class_weights,
        chosen.class_weights_start_fraction,
    )


@pytest.mark.parametrize("name", IMBALANCE_STRATEGIES)
def test_a_strategy_is_written_out_and_stays_when_read_again(name: str) -> None:
    config = resolved(imbalance__strategy=name)
    strategy = IMBALANCE_STRATEGIES[name]
    assert parts(config) == (
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
def test_what_is_said_of_a_part_holds(
    settings: dict[str, Any], expected: tuple[str, str, str, float]
) -> None:
    assert parts(resolved(**settings)) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"imbalance__strategy": "weighted", "imbalance__class_weights": "balanced"},
            r"^imbalance\.sampler=weighted draws .*, and imbalance\.class_weights=balanced weighs "
            r".*: together they correct more than once for the same imbalance "
            r"\(imbalance\.strategy=weighted\)\. Keep one, or set imbalance\.allow_double_correction=true",
        ),
        (
            {"imbalance__strategy": "logit_adjusted", "imbalance__sampler": "undersample"},
            r"sampler=undersample draws .*, and loss\.name=logit_adjusted takes the size",
        ),
        (
            {"imbalance__strategy": "drw", "loss__name": "logit_adjusted"},
            r"class_weights=effective_number weighs .*, and loss\.name=logit_adjusted takes",
        ),
        (
            {"imbalance__strategy": "drs", "loss__name": "logit_adjusted"},
            r"sampler=deferred draws .*, and loss\.name=logit_adjusted takes",
        ),
        (
            {"imbalance__sampler": "mine:sampler", "imbalance__class_weights": "balanced"},
            r"sampler=mine:sampler draws .*, and imbalance\.class_weights=balanced",
        ),
        (
            {"imbalance__strategy": "focal", "loss__name": "ldam"},
            r"^loss\.name=ldam contradicts imbalance\.strategy=focal, whose loss is focal\.",
        ),
        (
            {"imbalance__strategy": "ldam_drw", "loss__name": "cross_entropy"},
            r"^loss\.name=cross_entropy contradicts imbalance\.strategy=ldam_drw",
        ),
        (
            {"imbalance__strategy": "weighted", "imbalance__sampler": "uniform"},
            r"^imbalance\.sampler=uniform contradicts imbalance\.strategy=weighted, whose sampler "
            r"is weighted\. Leave one of them out\.",
        ),
        (
            {"imbalance__strategy": "drs", "imbalance__sampler": "sqrt"},
            r"^imbalance\.sampler=sqrt contradicts imbalance\.strategy=drs, whose sampler is def",
        ),
        (
            {"imbalance__strategy": "drw", "imbalance__class_weights": "none"},
            r"^imbalance\.class_weights=none contradicts imbalance\.strategy=drw, whose "
            r"class_weights is effective_number\.",
        ),
        (
            {"imbalance__strategy": "crt", "imbalance__head_rebalancing": "none"},
            r"^imbalance\.head_rebalancing=none contradicts imbalance\.strategy=crt, whose head is crt\.",
        ),
        (
            {"imbalance__strategy": "post_hoc", "imbalance__head_rebalancing": "tau_norm"},
            r"^imbalance\.head_rebalancing=tau_norm contradicts imbalance\.strategy=post_hoc",
        ),
        (
            {"imbalance__class_weights_start_fraction": 0.5},
            r"^imbalance\.class_weights_start_fraction=0\.5 cannot apply to imbalance\.class_weights=none\.",
        ),
        (
            {"imbalance__strategy": "focal", "imbalance__class_weights_params": {"beta": 0.9}},
            r"^imbalance\.class_weights_params=.* cannot apply to imbalance\.class_weights=none\.",
        ),
    ],
)
def test_what_contradicts_or_corrects_twice_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(**settings)


def test_what_is_wrong_whatever_auto_comes_to_is_found_before() -> None:
    check_imbalance(build_config({}))
    check_imbalance(build_config({}, assignments={"imbalance.class_weights": "balanced"}))
    both = {"imbalance.class_weights": "balanced", "imbalance.sampler": "weighted"}
    with pytest.raises(ConfigError, match="together they correct more than once"):
        check_imbalance(build_config({}, assignments=both))
    check_imbalance(
        build_config({}, assignments={**both, "imbalance.allow_double_correction": True})
    )
    named = {"imbalance.strategy": "ldam", "loss.name": "focal"}
    with pytest.raises(ConfigError, match=r"loss\.name=focal contradicts"):
        check_imbalance(build_config({}, assignments=named))
