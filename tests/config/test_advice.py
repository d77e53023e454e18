"""Tests of the recommended options of a data set."""

import re

import pytest
import torch

from finetune.config.advice import BACKBONE_GMACS, recommend_options
from finetune.config.facts import Facts
from finetune.config.recipe import choose_recipe
from finetune.config.schema import Config
from finetune.models.backbone import create_network
from finetune.models.costs.throughput import count_macs


def build_facts(*counts: int) -> Facts:
    return Facts(
        class_counts=counts,
        is_pretrained=True,
        num_groups=6,
        image_size=224,
        has_fast_bf16=False,
        free_cores=1,
    )


@pytest.mark.parametrize(
    ("counts", "val_fraction", "training"),
    [
        ({"a": 100, "b": 100}, 0.2, (80, 80)),
        ({"a": 100, "b": 100}, 0.0, (100, 100)),
        ({"a": 3000, "b": 30}, 0.2, (2400, 24)),
        ({"a": 1, "b": 1}, 0.9, (1, 1)),
        ({"a": 50_000, "b": 50_000}, 0.0, (50_000, 50_000)),
        ({"a": 5}, 0.2, (4,)),
    ],
)
def test_recommend_options_agree_with_the_recipe(
    counts: dict[str, int], val_fraction: float, training: tuple[int, ...]
) -> None:
    options = recommend_options(counts, shorter_side=500, val_fraction=val_fraction)
    chosen = choose_recipe(Config(), build_facts(*training))
    assert options["--batch-size"] == chosen["trainer.batch_size"]
    assert options["trainer.monitor"].value == chosen["trainer.monitor"].value


@pytest.mark.parametrize(("side", "is_small"), [(28, True), (63, True), (64, False), (500, False)])
def test_recommend_options_small_images_get_small_image_size(side: float, is_small: bool) -> None:
    options = recommend_options({"a": 50, "b": 50}, shorter_side=side, val_fraction=0.2)
    assert ("--image-size" in options) == is_small
    if is_small:
        assert options["--image-size"].value == "64"
        assert str(side) in options["--image-size"].reason


@pytest.mark.parametrize("name", BACKBONE_GMACS)
def test_backbone_gmacs_equal_counted_macs(name: str) -> None:
    network = create_network(name, num_classes=10, weights="random")
    num_macs = count_macs(network.module.eval(), network.spec, device=torch.device("cpu"))
    assert round(num_macs / 1e9, 1) == BACKBONE_GMACS[name]
    assert network.spec.input_size == (3, 224, 224)


@pytest.mark.parametrize(
    ("side", "count", "backbone", "words"),
    [
        (28, 100, "resnet18", ("28", "160 training images")),
        (28, 50_000, "resnet18", ("28", "80,000 training images")),
        (64, 100, "resnet50", ("160 training images", "CPU", "resnet18")),
        (500, 50_000, "resnet50", ("80,000 training images", " h ", "resnet18")),
    ],
)
def test_recommend_backbone_follows_image_size_and_states_cost(
    side: float, count: int, backbone: str, words: tuple[str, ...]
) -> None:
    choice = recommend_options({"a": count, "b": count}, shorter_side=side, val_fraction=0.2)[
        "--backbone"
    ]
    assert choice.value == backbone
    for word in words:
        assert word in choice.reason


def test_recommend_backbone_cost_is_that_of_probe_and_epochs() -> None:
    # 10,000 images: a forward pass at 224 px, and six epochs at 192 px with a backward pass each
    tmacs = 10_000 * 4.1e9 * (1 + 6 * 3 * (192 / 224) ** 2) / 1e12
    reason = recommend_options({"a": 5000, "b": 5000}, shorter_side=300, val_fraction=0)[
        "--backbone"
    ].reason
    match = re.search(r"10,000 .*?(\d+) TMACs", reason)
    assert match is not None
    assert float(match[1]) == pytest.approx(tmacs, rel=0.05)
    assert f"{tmacs * 1e12 / 70e9 / 3600:.0f} h " in reason


def test_recommend_options_ratio_refers_to_training_images() -> None:
    options = recommend_options({"a": 3000, "b": 30}, shorter_side=500, val_fraction=0.2)
    reasons = [choice.reason for choice in options.values() if "imbalance ratio" in choice.reason]
    assert reasons
    assert all(reason.endswith("of the training images") for reason in reasons)


def test_recommend_options_have_reasons() -> None:
    for choice in recommend_options({"a": 1, "b": 9}, shorter_side=9, val_fraction=0.0).values():
        assert choice.reason
