"""Tests of the transform of training images: presets of rare classes, and image sizes."""

from pathlib import Path
from typing import Any

import pytest

from finetune.builders import build_training
from finetune.builders.augmentation import find_rare_classes
from finetune.config.load import build_config
from finetune.data.training_data import TrainingData
from finetune.data.transforms.rare_classes import RareClassTransform
from finetune.errors import ConfigError
from finetune.models.backbone import accepts_image_size, create_network, is_size_agnostic
from finetune.types import Draw
from tests.support.runs import (
    build_listed_manifest,
    create_small_config,
    create_small_training,
    write_weights,
)

COUNTS = {"a": 20, "b": 10, "c": 3}


def test_rare_classes_have_fewer_images_than_the_fraction() -> None:
    config = create_small_config(augment__name="light", augment__rare_class_preset="strong")
    transform = build_training(
        config, build_listed_manifest(COUNTS)
    ).datamodule.train_dataset.transform
    assert isinstance(transform, RareClassTransform)
    assert transform.is_rare.tolist() == [False] * 30 + [True] * 3
    data = TrainingData.from_manifest(build_listed_manifest(COUNTS))
    assert find_rare_classes(config.augment, data) == ("c",)
    more = create_small_config(
        augment__name="light", augment__rare_class_preset="strong", augment__rare_class_fraction=0.6
    )
    assert find_rare_classes(more.augment, data) == ("b", "c")
    assert find_rare_classes(create_small_config(augment__name="light").augment, data) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"augment__name": "none"},
            r"^augment\.rare_class_preset=medium cannot apply to augment\.name=none",
        ),
        (
            {"augment__name": "strong"},
            r"^augment\.rare_class_preset=medium cannot apply to augment\.name=str",
        ),
        (
            {"augment__name": "light", "augment__rare_class_fraction": 0.1},
            r"^augment\.rare_class_preset=medium .*rare_class_fraction=0\.1: .*10%",
        ),
    ],
)
def test_rare_class_preset_without_effect_raises_config_error(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_training(
            create_small_config(augment__rare_class_preset="medium", **settings),
            build_listed_manifest(COUNTS),
        )


def test_rare_class_fraction_without_preset_raises_config_error() -> None:
    with pytest.raises(ConfigError, match=r"rare_class_fraction.*rare_class_preset=off"):
        build_config({}, assignments={"augment.rare_class_fraction": 0.5})
    config = build_config({}, assignments={"augment.rare_class_preset": False})
    assert config.augment.rare_class_preset == "off"


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [("test_resnet", True), ("deit_tiny_patch16_224", False), ("test_convnext", True)],
)
def test_accepts_image_size_depends_on_the_network(backbone: str, expected: bool) -> None:
    network = create_network(backbone, num_classes=3, weights="random")
    network.module.train()
    assert accepts_image_size(network, 96) is expected
    assert network.module.training


@pytest.mark.parametrize(("backbone", "expected"), [("test_resnet", True), ("vgg11", False)])
def test_is_size_agnostic_network_with_fixed_map_is_false(backbone: str, expected: bool) -> None:
    network = create_network(backbone, num_classes=3, weights="random")
    assert accepts_image_size(network, 160)
    assert is_size_agnostic(network, 160) is expected


def test_train_image_size_grows_over_epochs_and_evaluation_size_is_constant(animals: Path) -> None:
    training = create_small_training(
        animals,
        augment__name="medium",
        data__image_size=96,
        data__train_image_size=[32, 64],
        trainer__epochs=2,
    )
    data = training.datamodule
    for epoch, side in ((0, 32), (1, 64), (7, 64)):
        batch = data.train_dataset.__getitems__([Draw(row, epoch, 0) for row in range(3)])
        assert batch["image"].shape == (3, side, side, 3)
        assert batch["color_matrix"].shape == (3, 3, 4)
    assert data.val_dataset[0]["image"].shape == (96, 96, 3)
    assert data.train_dataset.transform.has_flip


def test_min_side_px_follows_the_largest_train_image_size(animals: Path) -> None:
    small, large = (
        create_small_training(
            animals, augment__name="medium", data__train_image_size=sizes
        ).datamodule.train_dataset
        for sizes in ([16, 24], [24, 32])
    )
    assert small.transform.min_side_px == 41  # 24 px over a root of 0.35
    assert large.transform.min_side_px == 55


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment__name": "none"}, r"data\.train_image_size.*augment\.name=none"),
        (
            {
                "augment__name": "light",
                "model__backbone": "deit_tiny_patch16_224",
                "data__image_size": 224,
            },
            r"^data\.train_image_size=24,32: deit_tiny_patch16_224.*224.* 24 ",
        ),
    ],
)
def test_train_image_size_not_supported_raises_config_error(
    settings: dict[str, object], message: str, animals: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        create_small_training(animals, data__train_image_size=[24, 32], **settings)


def test_train_image_size_is_parsed_from_a_comma_separated_pair() -> None:
    for given in ("24,32", [24, 32]):
        config = build_config({}, assignments={"data.train_image_size": given})
        assert config.data.train_image_size == (24, 32)
    with pytest.raises(ConfigError, match=r"data\.train_image_size"):
        build_config({}, assignments={"data.train_image_size": "24"})


def test_pretrained_network_trains_on_smaller_images_by_default(
    animals: Path, tmp_path: Path
) -> None:
    weights = str(write_weights(tmp_path / "weights.pth"))
    settings = {"model__weights": weights, "data__image_size": 160, "augment__name": "light"}
    training = create_small_training(animals, **settings)
    assert training.config.data.train_image_size == (128, 128)  # 112 is as close to 96
    assert training.datamodule.train_dataset.transform.size == (128, 128)
    assert training.datamodule.val_dataset.transform.size == (160, 160)
