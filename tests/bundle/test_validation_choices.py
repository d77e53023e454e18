"""Tests of what validation images chose of a model, from its card."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from finetune.bundle.model_card import ModelCard
from finetune.bundle.validation_choices import describe_validation_choices, list_validation_choices


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            {"interpolation": {"fraction": 0.0}},
            ("how much of the fine-tuning is kept",),
        ),
        ({"interpolation": {"fraction": None}}, ()),
        ({"rebalancing": {"method": "tau_norm", "tau": 0.0}}, ("tau of the classifier",)),
        ({"rebalancing": {"method": "crt", "tau": None}}, ()),
        ({"early_stop": {"epoch": 3}}, ("when training ended",)),
        (
            {"training_choices": ["last_stage_epochs", "epoch"], "calibration": {}},
            ("the epoch of the last stage", "the epoch", "the temperature"),
        ),
        ({"calibration": {"temperature": 1.2, "fitted_temperature": 1.2}}, ("the temperature",)),
        ({"calibration": {"temperature": 1.0, "fitted_temperature": 1.07}}, ()),
    ],
)
def test_choices_on_the_card_are_named(facts: dict[str, Any], expected: tuple[str, ...]) -> None:
    card = cast(ModelCard, SimpleNamespace(facts=facts))
    assert list_validation_choices([card]) == expected


def test_sentence_says_whose_metrics_are_optimistic() -> None:
    sentence = describe_validation_choices(["the temperature"])
    assert "metrics of the validation images" in sentence
