"""Tests of the transform of training images: presets of rare classes, and image sizes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.builders import build_training
from finetune.builders.augmentation import (
    choose_geometry,
    find_rare_classes,
    find_unmeasured_keys,
    get_crop_scales,
)
from finetune.config.load import build_config
from finetune.data.training_data import TrainingData
from finetune.data.transforms.rare_classes import RareClassTransform
from finetune.data.transforms.train_transform import TrainTransform
from finetune.errors import ConfigError
from finetune.models.backbone import accepts_image_size, create_network, is_size_agnostic
from finetune.probe.invariance import ViewEffect
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


def build_effect(
    *,
    loss_change: float = 0.0,
    loss_error: float = 0.01,
    view_accuracy: float = 0.9,
    fitted_change: float = 0.0,
) -> ViewEffect:
    return ViewEffect(
        num_images=400,
        loss=0.4,
        loss_change=loss_change,
        loss_error=loss_error,
        accuracy=0.9,
        view_accuracy=view_accuracy,
        accuracy_error=0.02,
        fitted_change=fitted_change,
        fitted_error=0.01,
    )


@pytest.mark.parametrize(
    ("loss_change", "loss_error", "expected"),
    [
        (-0.1, 0.01, "on"),
        (0.03, 0.016, "on"),
        (0.033, 0.016, "off"),
        (0.5, 0.1, "off"),
        (0.5, 0.3, "on"),
        (0.019, 0.0, "on"),  # certain, but small
    ],
)
def test_choose_geometry_flips_unless_mirrored_images_are_harder(
    loss_change: float, loss_error: float, expected: str
) -> None:
    effect = build_effect(loss_change=loss_change, loss_error=loss_error, view_accuracy=0.71)
    effects: dict[str | float, ViewEffect] = {"hflip": effect}
    (choice,) = choose_geometry(("hflip",), effects, crop_scale=0.35).values()
    assert choice.value == expected
    # the numbers that are compared, the larger of which decides: 5% of 0.4, or 2 standard errors
    limit = max(0.02, 2 * loss_error)
    relation = "no less" if expected == "off" else "less"
    assert f"by {loss_change:+.4f}, {relation} than the {limit:+.4f}" in choice.reason


@pytest.mark.parametrize(
    ("fitted_change", "expected"), [(-0.1, "on"), (-0.017, "on"), (-0.016, "off"), (0.1, "off")]
)
def test_choose_geometry_turns_only_where_heads_gain_by_it(
    fitted_change: float, expected: str
) -> None:
    effect = build_effect(fitted_change=fitted_change)
    effects: dict[str | float, ViewEffect] = {"vflip": effect, "rot90": effect}
    choices = choose_geometry(("vflip", "rot90"), effects, crop_scale=0.35)
    assert {key: choice.value for key, choice in choices.items()} == {
        "augment.vflip": expected,
        "augment.rot90": expected,
    }
    relation = "at least as low as" if expected == "on" else "higher than"
    assert f"by {fitted_change:+.4f}, {relation} the -0.0164" in choices["augment.vflip"].reason


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [((0.8, 0.9, 0.9, 0.9), 0.35), ((0.5, 0.6, 0.8, 0.9), 0.65), ((0.2, 0.3, 0.4, 0.5), 1.0)],
)
def test_choose_geometry_crops_are_as_small_as_heads_allow(
    accuracies: tuple[float, ...], expected: float
) -> None:
    areas = get_crop_scales(0.35)
    effects: dict[str | float, ViewEffect] = {
        area: build_effect(view_accuracy=accuracy)
        for area, accuracy in zip(areas, accuracies, strict=True)
    }
    (choice,) = choose_geometry(("min_crop_scale",), effects, crop_scale=0.35).values()
    assert choice.value == expected
    assert f"accuracy of heads 90.0% on whole images, {accuracies[0]:.1%} on crops of 35%" in (
        choice.reason
    )
    assert "keep 76.5% (85% of it)" in choice.reason
    (of_labels,) = choose_geometry(
        ("min_crop_scale",), effects, crop_scale=0.35, is_multi_label=True
    ).values()
    assert "fraction of correct labels of heads 90.0%" in of_labels.reason


def test_get_crop_scales_begin_with_that_of_the_preset() -> None:
    assert get_crop_scales(0.2) == (0.2, 0.35, 0.5, 0.65, 0.8)
    assert get_crop_scales(0.5) == (0.5, 0.65, 0.8)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("hflip", "vflip", "rot90", "min_crop_scale")),
        ({"augment__hflip": "on", "augment__min_crop_scale": 0.6}, ("vflip", "rot90")),
        ({"unfreeze__name": "linear_probe", "trainer__epochs": "auto"}, ()),
        (
            {"unfreeze__name": "linear_probe", "trainer__epochs": "auto", "probe__depth": 2},
            ("hflip",),
        ),
        (
            {
                "unfreeze__name": "linear_probe",
                "trainer__epochs": "auto",
                "probe__depth": 2,
                "probe__hflip": "on",
            },
            (),
        ),
        ({"probe__enabled": "off"}, ()),
        ({"augment__name": "none"}, ()),
    ],
)
def test_unmeasured_keys_need_a_probe_and_a_preset(
    settings: dict[str, Any], expected: tuple[str, ...], animals: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    given = {"augment__name": "medium", "model__weights": str(weights), **settings}
    training = create_small_training(animals, **given)
    assert find_unmeasured_keys(training.config) == expected
    if settings.get("probe__enabled") == "off":
        augment = training.config.augment
        assert (augment.hflip, augment.vflip, augment.rot90) == ("on", "off", "off")
        assert augment.min_crop_scale == 0.35


def test_rare_class_preset_keeps_its_crops_unless_they_are_restricted() -> None:
    for scale, expected in ((0.5, [0.5, 0.2]), (0.8, [0.8, 0.8])):
        config = create_small_config(
            augment__name="light",
            augment__rare_class_preset="strong",
            augment__min_crop_scale=scale,
        )
        training = build_training(config, build_listed_manifest(COUNTS))
        transform = training.datamodule.train_dataset.transform
        assert isinstance(transform, RareClassTransform)
        areas = [
            part.initial_crop.min_area_fraction
            for part in (transform.default, transform.rare)
            if isinstance(part, TrainTransform) and part.initial_crop is not None
        ]
        assert areas == expected


def test_choose_geometry_ignores_certain_but_negligible_changes() -> None:
    helpful = replace(build_effect(fitted_change=-0.004), fitted_error=1e-4)
    harder = replace(build_effect(), loss=1e-5, loss_change=0.004, loss_error=1e-4)
    effects: dict[str | float, ViewEffect] = {"hflip": harder, "vflip": helpful}
    choices = choose_geometry(("hflip", "vflip"), effects, crop_scale=0.35)
    assert choices["augment.hflip"].value == "on"
    assert choices["augment.vflip"].value == "off"
