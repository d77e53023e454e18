"""The probe is fitted to classes of unequal size as the last epoch would treat them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.builders import Training, build_training
from finetune.config.imbalance import IMBALANCE_STRATEGIES
from finetune.config.load import replace_values
from finetune.errors import ConfigError
from tests.support.runs import listed, small_config, write_weights

COUNTS = {"a": 12, "b": 6, "c": 3}
SIZES = np.array([12.0, 6.0, 3.0])
LABELS = np.repeat([0, 1, 2], list(COUNTS.values()))
BETA = 0.999
EFFECTIVE = (1 - BETA**SIZES) / (1 - BETA)

SHARES = {
    "none": SIZES,
    "sqrt": SIZES**0.5,
    "effective_number": SIZES / EFFECTIVE,
    "drw": SIZES / EFFECTIVE,
    "ldam_drw": SIZES / EFFECTIVE,
    "focal": SIZES,
    "ldam": SIZES,
    "logit_adjusted": SIZES,
    **dict.fromkeys(("crt", "tau_norm", "post_hoc"), SIZES),  # what they do comes later
}
"""Weight of all images of a class, up to a factor; every other strategy treats classes alike."""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


def probed(pretrained: Path, **settings: Any) -> Training:
    config = small_config(model__weights=str(pretrained), trainer__epochs=5, **settings)
    return build_training(config, listed(COUNTS))


@pytest.mark.parametrize("strategy", IMBALANCE_STRATEGIES)
def test_images_weigh_as_in_the_last_epoch(strategy: str, pretrained: Path) -> None:
    probe = probed(pretrained, imbalance__strategy=strategy).probe
    assert probe is not None
    of_class = np.bincount(LABELS, weights=probe.train.weights)
    expected = SHARES.get(strategy, np.ones(3))
    np.testing.assert_allclose(of_class / of_class.sum(), expected / expected.sum(), rtol=1e-5)
    if strategy == "logit_adjusted":
        assert probe.logit_offset is not None
        torch.testing.assert_close(probe.logit_offset, torch.tensor(SIZES / 21).log().float())
    else:
        assert probe.logit_offset is None


@pytest.mark.parametrize("strategy", ["none", "weighted", "progressive", "drw", "logit_adjusted"])
def test_a_probe_alone_is_fitted_by_these_too(strategy: str, pretrained: Path) -> None:
    config = small_config(
        model__weights=str(pretrained),
        trainer__epochs="auto",
        unfreeze__name="linear_probe",
        imbalance__strategy=strategy,
    )
    training = build_training(config, listed(COUNTS))
    assert training.is_probe_only
    assert training.config.loss.label_smoothing == 0
    assert training.probe is not None
    of_class = np.bincount(LABELS, weights=training.probe.train.weights)
    expected = SHARES.get(strategy, np.ones(3))
    np.testing.assert_allclose(of_class / of_class.sum(), expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["focal", "ldam", "ldam_drw"])
def test_a_probe_alone_cannot_have_a_loss_that_is_not_fitted(
    strategy: str, pretrained: Path
) -> None:
    config = small_config(
        model__weights=str(pretrained),
        trainer__epochs="auto",
        unfreeze__name="linear_probe",
        imbalance__strategy=strategy,
    )
    with pytest.raises(ConfigError, match=r"^loss\.name=.* cannot apply to unfreeze\.name=linear"):
        build_training(config, listed(COUNTS))


def test_smoothed_labels_are_refused_of_a_probe_alone_but_not_of_an_older_releases_run(
    pretrained: Path,
) -> None:
    config = small_config(
        model__weights=str(pretrained),
        trainer__epochs="auto",
        unfreeze__name="linear_probe",
        loss__label_smoothing=0.1,  # as the default once was, which config.yaml still says
    )
    with pytest.raises(ConfigError, match=r"^loss\.label_smoothing cannot apply to unfreeze"):
        build_training(config, listed(COUNTS))
    assert build_training(config, listed(COUNTS), is_resumed=True).config.loss.label_smoothing == 0
    fine_tuned = replace_values(config, {"unfreeze.name": "all", "trainer.epochs": 2})
    going_on = build_training(fine_tuned, listed(COUNTS), is_resumed=True)
    assert going_on.config.loss.label_smoothing == 0.1
