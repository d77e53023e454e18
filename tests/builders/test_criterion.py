"""Tests of the criterion schedule and of class weights."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune import losses
from finetune.builders.criterion import (
    Criterion,
    build_class_weights,
    build_criterion_schedule,
    compute_class_weights_start_epoch,
    compute_probe_logit_offset,
)
from finetune.errors import ConfigError
from tests.support.runs import create_resolved_config

COUNTS = (12, 6, 3)
TENSOR = torch.tensor(COUNTS, dtype=torch.float32)


def build(**settings: Any) -> Callable[[int], Criterion]:
    """Return the criterion schedule of a run with these settings."""
    config = create_resolved_config(**{"imbalance__strategy": "none", **settings})
    num_epochs = config.trainer.epochs
    weights = build_class_weights(config.imbalance, COUNTS, num_epochs=num_epochs)
    return build_criterion_schedule(config.loss, COUNTS, weights)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, generator=generator), torch.arange(6) % 3


def test_criterion_passes_class_counts_and_parameters_to_loss(batch: tuple[Tensor, Tensor]) -> None:
    settings: dict[str, Any] = {
        "imbalance__strategy": "logit_adjusted",
        "loss__params": {"tau": 0.5},
        "loss__label_smoothing": 0.2,
    }
    expected = losses.logit_adjusted(*batch, class_counts_K=TENSOR, tau=0.5, label_smoothing=0.2)
    assert torch.equal(build(**settings)(0)(*batch), expected)
    offset = compute_probe_logit_offset(create_resolved_config(**settings).loss, COUNTS)
    assert offset is not None
    torch.testing.assert_close(offset, losses.compute_prior_offset(TENSOR, tau=0.5))


@pytest.mark.parametrize("strategy", ["none", "focal", "ldam", "class_weights"])
def test_probe_logit_offset_without_logit_adjustment_is_none(strategy: str) -> None:
    loss = create_resolved_config(imbalance__strategy=strategy).loss
    assert compute_probe_logit_offset(loss, COUNTS) is None


@pytest.mark.parametrize(
    ("strategy", "loss"), [("drw", losses.cross_entropy), ("ldam_drw", losses.ldam)]
)
def test_deferred_class_weights_apply_from_start_epoch(
    strategy: str, loss: Any, batch: tuple[Tensor, Tensor]
) -> None:
    settings: dict[str, Any] = {
        "imbalance__strategy": strategy,
        "imbalance__class_weights_params": {"beta": 0.9},
        "trainer__epochs": 10,
    }
    imbalance = create_resolved_config(**settings).imbalance
    assert compute_class_weights_start_epoch(imbalance, num_epochs=10) == 8
    kwargs = {"class_counts_K": TENSOR} if strategy == "ldam_drw" else {}
    weights = losses.compute_effective_number_class_weights(COUNTS, beta=0.9)
    schedule = build(**settings)
    for epoch in (0, 7):
        assert torch.equal(schedule(epoch)(*batch), loss(*batch, **kwargs))
    for epoch in (8, 9):
        assert torch.equal(schedule(epoch)(*batch), loss(*batch, **kwargs, class_weights_K=weights))


def test_class_weights_start_epoch_of_one_epoch_is_zero() -> None:
    for strategy, expected in (("drw", 0), ("focal", None)):
        imbalance = create_resolved_config(imbalance__strategy=strategy).imbalance
        assert compute_class_weights_start_epoch(imbalance, num_epochs=1) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"imbalance__strategy": "focal", "loss__params": {"gama": 1}},
            r"^loss\.params: unknown parameter 'gama'\. Did you mean 'gamma'\?",
        ),
        ({"loss__params": {"label_smoothing": 0.1}}, r"'label_smoothing'.*loss\.label_smoothing"),
        ({"loss__params": {"class_weights_K": 1}}, r"'class_weights_K'.*imbalance\.class_weights"),
        (
            {"loss__name": "focal", "loss__params": {"margin": 1}},
            # neither the class weights nor the counts, which other settings determine
            r"^loss\.params: unknown parameter 'margin'\. Known: gamma\.$",
        ),
        (
            {"imbalance__strategy": "focal", "loss__params": {"gamma": "much"}},
            r"^loss\.params: found gamma=much, expected a number",
        ),
        (
            {"imbalance__strategy": "focal", "loss__params": {"gamma": -1}},
            r"^loss\.name=focal with loss\.params=.*gamma.* fails: gamma",
        ),
        (
            {"imbalance__strategy": "ldam", "loss__params": {"max_margin": -0.1}},
            r"^loss\.name=ldam with .* fails: max_margin.*-0\.1",
        ),
        (
            {"imbalance__strategy": "ldam", "loss__params": {"scale": 0}},
            r"^loss\.name=ldam with .* fails: scale",
        ),
        *(
            (
                {"imbalance__strategy": "logit_adjusted", "loss__params": {"tau": tau}},
                r"^loss\.name=logit_adjusted with .*tau.* fails: .*(nan|inf)",
            )
            for tau in (math.nan, math.inf, -math.inf, 3e38)
        ),
        (
            {"imbalance__strategy": "ldam", "loss__label_smoothing": 0.1},
            r"^loss\.label_smoothing=0\.1 cannot apply to loss\.name=ldam",
        ),
        (
            {"imbalance__strategy": "class_weights", "imbalance__class_weights_params": {"b": 1}},
            r"^imbalance\.class_weights_params: unknown parameter 'b'",
        ),
        (
            {"imbalance__strategy": "drw", "imbalance__class_weights_params": {"beta": 1.5}},
            r"^imbalance\.class_weights_params=.*: beta",
        ),
    ],
)
def test_criterion_invalid_parameters_raise_config_error(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_custom_loss_receives_the_parameters_that_it_takes(
    code: Path, batch: tuple[Tensor, Tensor]
) -> None:
    code.write_text(
        "def own(logits, target, *, class_counts_K, factor):\n"
        "    return factor * (logits.sum() + class_counts_K.sum())\n"
    )
    settings: dict[str, Any] = {"loss__name": "mine:own", "loss__params": {"factor": 2}}
    output = build(**settings)(0)(*batch)
    torch.testing.assert_close(output, 2 * (batch[0].sum() + 21))
    with pytest.raises(ConfigError, match=r"unknown parameter 'class_weights_K'"):
        build(**settings, imbalance__class_weights="balanced")
