"""Tests of the class priors of a run, and of when its imbalance schedule becomes constant."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from finetune.builders import build_training
from finetune.builders.model_prior import build_class_balance, find_final_imbalance_phases
from finetune.bundle.model_card import ModelCard
from finetune.data.samplers.epoch_sampler import EpochSampler
from finetune.data.training_data import TrainingData
from finetune.errors import ConfigError
from finetune.evaluation.priors import ClassPrior, build_uniform_prior
from tests.support.runs import build_listed_manifest, create_resolved_config, create_small_config

COUNTS = {"ant": 64, "bee": 16, "cow": 4}
SMALL_DATA = TrainingData.from_manifest(build_listed_manifest({"a": 12, "b": 6, "c": 3}))


def compute_model_prior(**settings: Any) -> ClassPrior:
    """Return the class prior that the logits of a run assume after its last epoch."""
    data = TrainingData.from_manifest(build_listed_manifest(COUNTS))
    return build_class_balance(create_resolved_config(**settings), data).priors.model


def find_phases(strategy: str, **settings: Any) -> dict[str, tuple[str, int]]:
    settings = {"imbalance__strategy": strategy, "trainer__epochs": 10, **settings}
    return find_final_imbalance_phases(create_resolved_config(**settings), SMALL_DATA)


@pytest.mark.parametrize(
    "strategy", ["none", "weighted", "sqrt", "oversample", "undersample", "class_weights"]
)
def test_model_prior_equals_frequencies_of_drawn_and_weighted_images(strategy: str) -> None:
    training = build_training(
        create_small_config(imbalance__strategy=strategy), build_listed_manifest(COUNTS)
    )
    card = ModelCard.from_json(training.module.card)
    assert card.priors is not None
    assert card.priors == build_class_balance(training.config, training.data).priors
    labels = training.data.train.labels
    sampler = EpochSampler(
        training.datamodule.sampling_schedule, num_images=84, batch_size=4, seed=0
    )
    mass = np.zeros(3)
    for epoch in range(200):
        sampler.set_epoch(epoch)
        rows = [draw.row for draw in sampler]
        mass += np.bincount(labels[rows], minlength=3)
    if strategy == "class_weights":
        mass *= compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert card.priors.train == pytest.approx(np.array([64, 16, 4]) / 84)
    # 16,800 draws have a standard error of about half a percent
    assert card.priors.model == pytest.approx(mass / mass.sum(), abs=0.015)
    assert card.priors.target is None


def test_model_prior_of_balancing_strategies_is_uniform() -> None:
    # a schedule over the epochs counts as in the last one
    for strategy in ("weighted", "class_weights", "oversample", "drs", "progressive"):
        assert compute_model_prior(imbalance__strategy=strategy) == pytest.approx(
            build_uniform_prior(3), abs=1e-6
        )


def test_model_prior_of_logit_adjusted_loss_follows_tau() -> None:
    uniform = pytest.approx(build_uniform_prior(3))
    assert compute_model_prior(imbalance__strategy="logit_adjusted") == uniform
    settings: dict[str, Any] = {"imbalance__strategy": "logit_adjusted"}
    roots = np.sqrt([64, 16, 4])
    prior = compute_model_prior(**settings, loss__params={"tau": 0.5})
    assert prior == pytest.approx(roots / roots.sum())
    # a large tau leaves all of it to the rarest class
    assert compute_model_prior(**settings, loss__params={"tau": 1000.0}) == (0, 0, 1)


def test_post_hoc_with_a_class_never_drawn_raises_config_error(code: Path) -> None:
    code.write_text("def own(labels, num_classes):\n    return [float(k != 1) for k in labels]\n")
    config = create_small_config(
        imbalance__sampler="mine:own", imbalance__head_rebalancing="post_hoc"
    )
    with pytest.raises(
        ConfigError,
        match=r"^imbalance\.head_rebalancing=post_hoc cannot apply to "
        r"imbalance\.sampler=mine:own and .*'bee'",
    ):
        build_training(config, build_listed_manifest(COUNTS))


def test_model_prior_follows_custom_sampler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_sampler.py").write_text(
        "def bees(labels, num_classes):\n    return [3.0 if k == 1 else 1.0 for k in labels]\n"
    )
    prior = compute_model_prior(imbalance__sampler="own_sampler:bees")
    assert prior == pytest.approx((64 / 116, 48 / 116, 4 / 116))


@pytest.mark.parametrize(
    ("strategy", "first"),
    [
        ("drs", (64, 16, 4)),
        ("drw", (64, 16, 4)),
        ("abundant_first", (1, 1, 1)),
        ("none", (64, 16, 4)),
    ],
)
def test_prior_schedule_follows_the_epoch(strategy: str, first: tuple[int, ...]) -> None:
    config = create_small_config(imbalance__strategy=strategy, trainer__epochs=5)
    training = build_training(config, build_listed_manifest(COUNTS))
    schedule = training.module.recipe.model_prior_schedule
    assert schedule is not None
    # abundant_first draws nothing of the smallest class at first: then the last epoch counts
    assert schedule(0) == pytest.approx(np.array(first) / sum(first), abs=1e-6)
    card = ModelCard.from_json(training.module.card)
    assert card.priors is not None
    assert schedule(4) == card.priors.model


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
def test_final_imbalance_phases_name_strategy_and_epoch(
    strategy: str, sampler: int, class_weights: int
) -> None:
    phases = find_phases(strategy)
    assert (phases["sampler"][1], phases["class_weights"][1]) == (sampler, class_weights)
    for name, start in phases.values():
        assert start == 0 or name == f"imbalance.strategy={strategy}"


def test_final_imbalance_phases_without_strategy_name_the_key() -> None:
    phases = find_phases(
        "none", imbalance__sampler="deferred", imbalance__sampler_params={"start_fraction": 0.3}
    )
    assert phases["sampler"] == ("imbalance.sampler=deferred", 3)
    phases = find_phases(
        "none", imbalance__class_weights="balanced", imbalance__class_weights_start_fraction=0.5
    )
    assert phases["class_weights"] == ("imbalance.class_weights_start_fraction=0.5", 5)
    assert find_phases("drs", trainer__epochs=1)["sampler"][1] == 0
