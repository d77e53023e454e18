"""Training images of another side than evaluation's: for networks and pipelines that take them."""

from pathlib import Path

import pytest

from finetune.config.load import build_config
from finetune.errors import ConfigError
from finetune.models.backbone import accepts_image_size, create_network, is_size_agnostic
from finetune.types import Draw
from tests.support.runs import small_training, write_photos, write_weights


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "animals")


@pytest.mark.parametrize(
    ("backbone", "takes"),
    [("test_resnet", True), ("deit_tiny_patch16_224", False), ("test_convnext", True)],
)
def test_a_network_takes_other_sides_or_not(backbone: str, takes: bool) -> None:
    network = create_network(backbone, num_classes=3, weights="random")
    network.module.train()
    assert accepts_image_size(network, 96) is takes
    assert network.module.training


@pytest.mark.parametrize(("backbone", "serves"), [("test_resnet", True), ("vgg11", False)])
def test_a_network_that_stretches_its_map_is_not_given_other_sides(
    backbone: str, serves: bool
) -> None:
    network = create_network(backbone, num_classes=3, weights="random")
    assert accepts_image_size(network, 160)
    assert is_size_agnostic(network, 160) is serves


def test_images_grow_from_epoch_to_epoch_and_evaluation_keeps_its_own(animals: Path) -> None:
    training = small_training(
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


def test_pixels_are_kept_for_the_largest_side(animals: Path) -> None:
    small, large = (
        small_training(
            animals, augment__name="medium", data__train_image_size=sizes
        ).datamodule.train_dataset
        for sizes in ([16, 24], [24, 32])
    )
    assert small.transform.min_side_px == 41  # 24 px over a root of 0.35
    assert large.transform.min_side_px == 55


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment__name": "none"}, r"^data\.train_image_size cannot apply to augment\.name=none"),
        (
            {
                "augment__name": "light",
                "model__backbone": "deit_tiny_patch16_224",
                "data__image_size": 224,
            },
            r"^data\.train_image_size=24,32: deit_tiny_patch16_224 does not take images of 24 pixels "
            r"when made for 224",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    settings: dict[str, object], message: str, animals: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_training(animals, data__train_image_size=[24, 32], **settings)


def test_sides_are_typed_with_a_comma() -> None:
    for given in ("24,32", [24, 32]):
        config = build_config({}, assignments={"data.train_image_size": given})
        assert config.data.train_image_size == (24, 32)
    with pytest.raises(ConfigError, match=r"data\.train_image_size"):
        build_config({}, assignments={"data.train_image_size": "24"})


def test_a_pretrained_network_is_trained_on_smaller_images_by_itself(
    animals: Path, tmp_path: Path
) -> None:
    weights = str(write_weights(tmp_path / "weights.pth"))
    settings = {"model__weights": weights, "data__image_size": 160, "augment__name": "light"}
    training = small_training(animals, **settings)
    assert training.config.data.train_image_size == (128, 128)  # 112 lies as near to 96
    assert training.datamodule.train_dataset.transform.size == (128, 128)
    assert training.datamodule.val_dataset.transform.size == (160, 160)
