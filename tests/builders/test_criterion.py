"""A loss of a name, with what it takes, becomes a function of the epoch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune import losses
from finetune.builders.criterion import (
    build_criterion_schedule,
    compute_class_weights_start_epoch,
    compute_probe_logit_offset,
)
from finetune.config.imbalance import apply_imbalance_strategy
from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.errors import ConfigError
from tests.support.runs import small_config

COUNTS = (12, 6, 3)
TENSOR = torch.tensor(COUNTS, dtype=torch.float32)


def config_of(**settings: Any) -> Config:
    settings = {"loss__label_smoothing": 0.0, **settings}
    return apply_imbalance_strategy(small_config(**{"imbalance__strategy": "none", **settings}))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, generator=generator), torch.arange(6) % 3


def test_class_counts_and_parameters_reach_a_loss(batch: tuple[Tensor, Tensor]) -> None:
    config = config_of(
        imbalance__strategy="logit_adjusted", loss__params={"tau": 0.5}, loss__label_smoothing=0.2
    )
    expected = losses.logit_adjusted(*batch, class_counts_K=TENSOR, tau=0.5, label_smoothing=0.2)
    assert torch.equal(build_criterion_schedule(config, COUNTS)(0)(*batch), expected)
    offset = compute_probe_logit_offset(config, COUNTS)
    assert offset is not None
    torch.testing.assert_close(offset, losses.compute_prior_offset(TENSOR, tau=0.5))


@pytest.mark.parametrize("strategy", ["none", "focal", "ldam", "class_weights"])
def test_only_adjusted_logits_are_adjusted_in_a_probe(strategy: str) -> None:
    assert compute_probe_logit_offset(config_of(imbalance__strategy=strategy), COUNTS) is None


@pytest.mark.parametrize(
    ("strategy", "loss"), [("drw", losses.cross_entropy), ("ldam_drw", losses.ldam)]
)
def test_deferred_weights_begin_late(
    strategy: str, loss: Any, batch: tuple[Tensor, Tensor]
) -> None:
    config = config_of(
        imbalance__strategy=strategy,
        imbalance__class_weights_params={"beta": 0.9},
        trainer__epochs=10,
    )
    assert compute_class_weights_start_epoch(config) == 8
    given = {"class_counts_K": TENSOR} if strategy == "ldam_drw" else {}
    weights = losses.effective_number_class_weights(COUNTS, beta=0.9)
    at = build_criterion_schedule(config, COUNTS)
    for epoch in (0, 7):
        assert torch.equal(at(epoch)(*batch), loss(*batch, **given))
    for epoch in (8, 9):
        assert torch.equal(at(epoch)(*batch), loss(*batch, **given, class_weights_K=weights))


def test_in_a_single_epoch_they_begin_at_once() -> None:
    assert (
        compute_class_weights_start_epoch(config_of(imbalance__strategy="drw", trainer__epochs=1))
        == 0
    )
    assert compute_class_weights_start_epoch(config_of(imbalance__strategy="focal")) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"imbalance__strategy": "focal", "loss__params": {"gama": 1}},
            r"^loss\.params: unknown parameter 'gama'\. Did you mean 'gamma'\?",
        ),
        ({"loss__params": {"label_smoothing": 0.1}}, r"'label_smoothing' comes from loss\.label"),
        ({"loss__params": {"class_weights_K": 1}}, r"'class_weights_K' comes from imbalance\.cl"),
        (
            {"imbalance__strategy": "focal", "loss__params": {"gamma": "much"}},
            r"^loss\.name=focal with loss\.params=.*much.* fails: TypeError",
        ),
        (
            {"imbalance__strategy": "focal", "loss__params": {"gamma": -1}},
            r"^loss\.name=focal with loss\.params=.*gamma.* fails: ValueError: gamma is 0 or more",
        ),
        (
            {"imbalance__strategy": "ldam", "loss__params": {"max_margin": -0.1}},
            r"^loss\.name=ldam with .* fails: ValueError: max_margin is 0 or more, not -0\.1",
        ),
        (
            {"imbalance__strategy": "ldam", "loss__params": {"scale": 0}},
            r"^loss\.name=ldam with .* fails: ValueError: scale is above 0, not 0",
        ),
        *(
            (
                {"imbalance__strategy": "logit_adjusted", "loss__params": {"tau": tau}},
                r"^loss\.name=logit_adjusted with .*tau.* fails: ValueError: the loss of logits of "
                r"0 is (nan|inf)",
            )
            for tau in (math.nan, math.inf, -math.inf, 3e38)
        ),
        (
            {"imbalance__strategy": "ldam", "loss__label_smoothing": 0.1},
            r"^loss\.name=ldam: unknown parameter 'label_smoothing'",
        ),
        (
            {"imbalance__strategy": "class_weights", "imbalance__class_weights_params": {"b": 1}},
            r"^imbalance\.class_weights_params: unknown parameter 'b'\. It takes none",
        ),
        (
            {"imbalance__strategy": "drw", "imbalance__class_weights_params": {"beta": 1.5}},
            r"^imbalance\.class_weights_params=.*: beta lies in",
        ),
    ],
)
def test_what_a_loss_does_not_take_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_criterion_schedule(config_of(**settings), COUNTS)


def test_a_loss_of_the_users_own_is_given_what_it_takes(
    code: Path, batch: tuple[Tensor, Tensor]
) -> None:
    code.write_text(
        "def own(logits, target, *, class_counts_K, factor):\n"
        "    return factor * (logits.sum() + class_counts_K.sum())\n"
    )
    config = config_of(loss__name="mine:own", loss__params={"factor": 2})
    found = build_criterion_schedule(config, COUNTS)(0)(*batch)
    torch.testing.assert_close(found, 2 * (batch[0].sum() + 21))
    weighted = replace_values(config, {"imbalance.class_weights": "balanced"})
    with pytest.raises(ConfigError, match=r"unknown parameter 'class_weights_K'"):
        build_criterion_schedule(weighted, COUNTS)
