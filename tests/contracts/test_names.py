"""Contract of names: those in the config sections are the keys of the component tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from finetune.config.imbalance import IMBALANCE_STRATEGIES
from finetune.config.optimizer_defaults import (
    HEAD_LR,
    UNMEASURED_BACKBONE_LR_SCALE,
    WEIGHT_DECAY,
)
from finetune.config.sections import augment, balance, learning, objective, optim
from finetune.config.sections.head_options import ACTIVATION_NAMES, parse_mlp_options
from finetune.data.samplers.sampling_weights import SAMPLERS
from finetune.data.transforms.presets import AUGMENTATIONS
from finetune.lookup import has_parameter
from finetune.losses import CLASS_WEIGHTS, LOSSES, MULTI_LABEL_LOSSES, SCORE_LOSSES
from finetune.models.mlp_head import ACTIVATIONS
from finetune.training.optimization.optimizers import OPTIMIZERS
from finetune.training.schedules.learning_rate import LR_SCHEDULES
from finetune.training.schedules.unfreeze import UNFREEZE_SCHEDULES


@pytest.mark.parametrize(
    ("names", "table"),
    [
        pytest.param(balance.SAMPLER_NAMES, SAMPLERS, id="SAMPLERS"),
        pytest.param(augment.AUGMENT_NAMES, AUGMENTATIONS, id="AUGMENTATIONS"),
        pytest.param(objective.LOSS_NAMES, LOSSES, id="LOSSES"),
        pytest.param(balance.CLASS_WEIGHT_NAMES, CLASS_WEIGHTS, id="CLASS_WEIGHTS"),
        pytest.param(learning.UNFREEZE_NAMES, UNFREEZE_SCHEDULES, id="UNFREEZE"),
        pytest.param(optim.LR_SCHEDULE_NAMES, LR_SCHEDULES, id="LR_SCHEDULES"),
        pytest.param(optim.OPTIMIZER_NAMES, OPTIMIZERS, id="OPTIMIZERS"),
        pytest.param(ACTIVATION_NAMES, ACTIVATIONS, id="ACTIVATIONS"),
        pytest.param(balance.IMBALANCE_NAMES, IMBALANCE_STRATEGIES, id="IMBALANCE"),
    ],
)
def test_config_names_are_the_keys_of_the_table(
    names: Sequence[str], table: Mapping[str, Any]
) -> None:
    assert list(names) == list(table)


def test_activations_of_a_head_are_those_that_the_config_accepts() -> None:
    for name in ACTIVATION_NAMES:
        assert parse_mlp_options({"activation": name}).activation == name


def test_every_optimizer_has_a_rate_a_scale_and_a_weight_decay() -> None:
    for table in (HEAD_LR, UNMEASURED_BACKBONE_LR_SCALE, WEIGHT_DECAY):
        assert table.keys() == OPTIMIZERS.keys()
    with_momentum = {name for name, entry in OPTIMIZERS.items() if entry.has_momentum}
    assert with_momentum == {*optim.MOMENTUM_OPTIMIZERS}


def test_schedules_with_a_final_factor_are_those_that_take_it() -> None:
    taking = {n for n, function in LR_SCHEDULES.items() if has_parameter(function, "final_factor")}
    assert taking == {*optim.FINAL_FACTOR_SCHEDULES}


def test_imbalance_strategies_name_existing_components() -> None:
    for strategy in IMBALANCE_STRATEGIES.values():
        assert strategy.sampler in SAMPLERS
        assert strategy.loss in LOSSES
        assert strategy.class_weights in ("none", *CLASS_WEIGHTS)
        assert strategy.head_rebalancing in ("none", "crt", "tau_norm", "post_hoc")


def test_losses_of_scores_exist() -> None:
    assert {*SCORE_LOSSES} <= LOSSES.keys()


def test_imbalance_strategies_cover_all_components() -> None:
    strategies = IMBALANCE_STRATEGIES.values()
    assert {strategy.sampler for strategy in strategies} == SAMPLERS.keys()
    others = {*MULTI_LABEL_LOSSES, *SCORE_LOSSES, "mse"}  # which treat all classes alike
    assert {strategy.loss for strategy in strategies} == LOSSES.keys() - others
    assert {strategy.class_weights for strategy in strategies} == {"none", *CLASS_WEIGHTS}


def test_crop_scales_in_the_config_are_those_of_the_presets() -> None:
    presets = {name: preset for name, preset in AUGMENTATIONS.items() if preset is not None}
    assert {name: preset.min_crop_scale for name, preset in presets.items()} == (
        augment.PRESET_CROP_SCALES
    )
