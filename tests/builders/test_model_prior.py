"""The prior that a run's card states is that of the images which its sampler and weights give."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from finetune.builders import build_training
from finetune.builders.model_prior import compute_run_priors
from finetune.bundle.model_card import ModelCard
from finetune.data.samplers.epoch_sampler import EpochSampler
from finetune.errors import ConfigError
from finetune.evaluation.priors import build_uniform_prior
from finetune.types import Split
from tests.support.networks import one_thread
from tests.support.runs import listed, small_config

COUNTS = {"ant": 64, "bee": 16, "cow": 4}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize(
    "strategy", ["none", "weighted", "sqrt", "oversample", "undersample", "class_weights"]
)
def test_the_models_prior_is_what_the_sampler_draws_and_the_weights_count(strategy: str) -> None:
    manifest = listed(COUNTS)
    training = build_training(small_config(imbalance__strategy=strategy), manifest)
    card = ModelCard.from_json(training.module.card)
    assert card.priors is not None
    assert card.priors == compute_run_priors(
        training.config, manifest, training.datamodule.sampling_schedule
    )
    labels = np.array(manifest.encode_labels(manifest.get_samples(Split.TRAIN)))
    sampler = EpochSampler(
        training.datamodule.sampling_schedule, num_images=84, batch_size=4, seed=0
    )
    seen = np.zeros(3)
    for epoch in range(200):
        sampler.set_epoch(epoch)
        rows = [draw.row for draw in sampler]
        seen += np.bincount(labels[rows], minlength=3)
    if strategy == "class_weights":
        seen *= compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert card.priors.train == pytest.approx(np.array([64, 16, 4]) / 84)
    # 16,800 draws leave half a percent open
    assert card.priors.model == pytest.approx(seen / seen.sum(), abs=0.015)
    assert card.priors.target is None


def test_strategies_that_balance_give_every_class_the_same_share() -> None:
    manifest = listed(COUNTS)
    # what changes over the epochs counts as at their end
    for strategy in ("weighted", "class_weights", "oversample", "drs", "progressive"):
        training = build_training(small_config(imbalance__strategy=strategy), manifest)
        priors = compute_run_priors(
            training.config, manifest, training.datamodule.sampling_schedule
        )
        assert priors.model == pytest.approx(build_uniform_prior(3), abs=1e-6)


def test_logits_of_an_adjusted_loss_assume_that_classes_are_alike() -> None:
    config = small_config(imbalance__strategy="logit_adjusted")
    training = build_training(config, listed(COUNTS))
    assert compute_run_priors(
        training.config, listed(COUNTS), training.datamodule.sampling_schedule
    ).model == pytest.approx(build_uniform_prior(3))
    half = small_config(imbalance__strategy="logit_adjusted", loss__params={"tau": 0.5})
    training = build_training(half, listed(COUNTS))
    found = compute_run_priors(
        training.config, listed(COUNTS), training.datamodule.sampling_schedule
    ).model
    assert found == pytest.approx(np.sqrt([64, 16, 4]) / np.sqrt([64, 16, 4]).sum())


def test_a_large_tau_leaves_all_to_the_rarest_class() -> None:
    config = small_config(imbalance__strategy="logit_adjusted", loss__params={"tau": 1000.0})
    training = build_training(config, listed(COUNTS))
    assert compute_run_priors(
        training.config, listed(COUNTS), training.datamodule.sampling_schedule
    ).model == (0, 0, 1)


def test_answers_cannot_be_adjusted_for_a_class_that_is_never_drawn(code: Path) -> None:
    code.write_text("def own(labels, num_classes):\n    return [float(k != 1) for k in labels]\n")
    config = small_config(imbalance__sampler="mine:own", imbalance__head_rebalancing="post_hoc")
    with pytest.raises(
        ConfigError,
        match=r"^imbalance\.head_rebalancing=post_hoc cannot adjust the answers for class 'bee', which has no "
        r"part in the last epoch by imbalance\.sampler=mine:own, ",
    ):
        build_training(config, listed(COUNTS))


def test_a_sampler_of_ones_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_sampler.py").write_text(
        "def bees(labels, num_classes):\n    return [3.0 if k == 1 else 1.0 for k in labels]\n"
    )
    config = small_config(imbalance__sampler="own_sampler:bees")
    training = build_training(config, listed(COUNTS))
    priors = compute_run_priors(
        training.config, listed(COUNTS), training.datamodule.sampling_schedule
    )
    assert priors.model == pytest.approx((64 / 116, 48 / 116, 4 / 116))


@pytest.mark.parametrize(
    ("strategy", "first"),
    [
        ("drs", (64, 16, 4)),
        ("drw", (64, 16, 4)),
        ("abundant_first", (1, 1, 1)),
        ("none", (64, 16, 4)),
    ],
)
def test_a_checkpoint_states_what_its_epoch_has_shown(
    strategy: str, first: tuple[int, ...]
) -> None:
    config = small_config(imbalance__strategy=strategy, trainer__epochs=5)
    training = build_training(config, listed(COUNTS))
    prior_at = training.module.recipe.model_prior_schedule
    assert prior_at is not None
    shares = np.array(first) / sum(first)
    # of the smallest class, abundant_first shows nothing at first: then the last epoch counts
    assert prior_at(0) == pytest.approx(shares, abs=1e-6)
    card = ModelCard.from_json(training.module.card)
    assert card.priors is not None
    assert prior_at(4) == card.priors.model
