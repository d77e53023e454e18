"""Advice follows the rules of the recipe."""

import re

import pytest
import torch

from finetune.config.advice import BACKBONE_GMACS, recommend_options
from finetune.config.facts import Facts
from finetune.config.recipe import choose_recipe
from finetune.config.schema import Config
from finetune.models.backbone import create_network
from finetune.models.throughput import count_macs


def facts_of(*counts: int) -> Facts:
    return Facts(
        class_counts=counts,
        is_pretrained=True,
        num_groups=6,
        image_size=224,
        has_fast_bf16=False,
        free_cores=1,
    )


@pytest.mark.parametrize(
    ("counts", "share", "training"),
    [
        ({"a": 100, "b": 100}, 0.2, (80, 80)),
        ({"a": 100, "b": 100}, 0.0, (100, 100)),
        ({"a": 3000, "b": 30}, 0.2, (2400, 24)),
        ({"a": 1, "b": 1}, 0.9, (1, 1)),
        ({"a": 50_000, "b": 50_000}, 0.0, (50_000, 50_000)),
        ({"a": 5}, 0.2, (4,)),
    ],
)
def test_it_is_what_fit_would_choose(
    counts: dict[str, int], share: float, training: tuple[int, ...]
) -> None:
    found = recommend_options(counts, shorter_side=500, val_fraction=share)
    chosen = choose_recipe(Config(), facts_of(*training))
    assert found["--batch-size"] == chosen["trainer.batch_size"]
    assert found["trainer.monitor"].value == chosen["trainer.monitor"].value


@pytest.mark.parametrize(("side", "is_small"), [(28, True), (63, True), (64, False), (500, False)])
def test_small_images_are_not_blown_up(side: float, is_small: bool) -> None:
    found = recommend_options({"a": 50, "b": 50}, shorter_side=side, val_fraction=0.2)
    assert ("--image-size" in found) == is_small
    if is_small:
        assert found["--image-size"].value == "64"
        assert f"{side} pixels" in found["--image-size"].reason


@pytest.mark.parametrize("name", BACKBONE_GMACS)
def test_what_a_backbone_costs_is_what_is_counted(name: str) -> None:
    network = create_network(name, num_classes=10, weights="random")
    counted = count_macs(network.module.eval(), network.spec, device=torch.device("cpu"))
    assert round(counted / 1e9, 1) == BACKBONE_GMACS[name]
    assert network.spec.input_size == (3, 224, 224)


@pytest.mark.parametrize(
    ("side", "count", "backbone", "words"),
    [
        (28, 100, "resnet18", ("28 pixels", "160 training images")),
        (28, 50_000, "resnet18", ("28 pixels", "80,000 training images")),
        (64, 100, "resnet50", ("160 training images", "CPU", "resnet18")),
        (500, 50_000, "resnet50", ("80,000 training images", "h on two CPU cores", "resnet18")),
    ],
)
def test_the_backbone_follows_the_images_and_says_their_cost(
    side: float, count: int, backbone: str, words: tuple[str, ...]
) -> None:
    choice = recommend_options({"a": count, "b": count}, shorter_side=side, val_fraction=0.2)[
        "--backbone"
    ]
    assert choice.value == backbone
    for word in words:
        assert word in choice.reason


def test_the_cost_is_that_of_a_probe_and_of_epochs_there_and_back() -> None:
    # 10,000 images, a pass at 224 pixels, six epochs at 160, of which a step back costs two ahead
    tera = 10_000 * 4.1e9 * (1 + 6 * 3 * (160 / 224) ** 2) / 1e12
    reason = recommend_options({"a": 5000, "b": 5000}, shorter_side=300, val_fraction=0)[
        "--backbone"
    ].reason
    said = re.search(r"10,000 training images cost about (\d+) TFLOPs", reason)
    assert said is not None
    assert float(said[1]) == pytest.approx(tera, rel=0.05)
    assert f"{tera * 1e12 / 70e9 / 3600:.0f} h on two CPU cores" in reason


def test_a_ratio_is_said_to_be_of_the_images_that_will_train() -> None:
    found = recommend_options({"a": 3000, "b": 30}, shorter_side=500, val_fraction=0.2)
    reasons = [choice.reason for choice in found.values() if "imbalance ratio" in choice.reason]
    assert reasons
    assert all(reason.endswith("of the training images") for reason in reasons)


def test_every_choice_has_a_reason() -> None:
    for choice in recommend_options({"a": 1, "b": 9}, shorter_side=9, val_fraction=0.0).values():
        assert choice.reason
