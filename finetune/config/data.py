"""The sections of the config tree on images: which, how they are read, and what is made of them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from finetune.config.section import Auto, Section, coerce_on_off
from finetune.lookup import suggest_name

AUGMENT_NAMES = ("none", "light", "medium", "strong")
"""The built-in rows of the table on a floor above; a contract test holds them equal."""

ImageSize = Annotated[int, Field(ge=8, le=4096)]


def _check_augment_name(value: str) -> str:
    """Take a preset, or the path of a pipeline saved by Albumentations."""
    if value in ("auto", *AUGMENT_NAMES) or value.lower().endswith((".json", ".yaml", ".yml")):
        return value
    raise ValueError(
        f"unknown preset '{value}'.{suggest_name(value, AUGMENT_NAMES)} "
        f"A pipeline saved with Albumentations is named by its .json or .yaml file"
    )


def _parse_side_pair(value: Any) -> Any:
    """Take 128,224 as it is typed, and 128 for both."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    return value.split(",") if isinstance(value, str) and "," in value else value


def _check_cache_location(value: str) -> str:
    """Take a word, or a folder that is not a mistyped word."""
    words = ("auto", "on", "off")
    if value in words or "/" in value or Path(value).is_dir():
        return value
    raise ValueError(
        f"'{value}' is neither {', '.join(words)} nor a folder.{suggest_name(value, words)} "
        f"A new folder is named with a slash, as in ./{value}"
    )


class DataConfig(Section):
    """The images and how they are read."""

    path: str | None = Field(
        None, description="folder of class folders, folder of train/val/test folders, or a CSV"
    )
    image_size: ImageSize | Auto = Field(
        "auto", description="side of the square input in pixels; auto: what the weights expect"
    )
    train_image_size: Annotated[
        tuple[ImageSize, ImageSize] | Auto, BeforeValidator(_parse_side_pair)
    ] = Field(
        "auto",
        description="sides of training images in the first and the last epoch, as 128,224, between "
        "which they grow evenly, or one for all; smaller ones are cheaper, and cut from an image "
        "look as large to the network as whole images of image_size do (Touvron et al. 2019)",
    )
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="share for validation where the data give no split"
    )
    test_fraction: float = Field(
        0.0, ge=0, lt=1, description="share for a final test where the data give no split"
    )
    min_images_per_class: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="fewest images a class may have; auto: one for each split. Smaller classes, "
        "where allowed here, only train",
    )
    leakage: Literal["warn", "drop", "move", "error", "ignore"] = Field(
        "warn",
        description="what to do where given splits hold out images whose copies are seen before; "
        "a split that is drawn keeps copies on one side where its groups allow. warn: measure "
        "without them, too; drop: leave out the copies that train; move: let all copies train; "
        "ignore: look for none",
    )
    max_megapixels: float = Field(
        178.0,
        gt=0,
        le=178.9,
        description="larger images are left out as decompression bombs; 178.9 is Pillow's limit",
    )
    cache: Annotated[str, AfterValidator(_check_cache_location), BeforeValidator(coerce_on_off)] = (
        Field(
            "auto",
            description="decode images once, to a store on disk: on, off, or the folder of "
            "the stores; auto: on for more than one epoch where it fits",
        )
    )
    cache_shorter_side: Annotated[int, Field(ge=8, le=8192)] | Auto = Field(
        "auto",
        description="shorter side of stored training images; auto: what the smallest crop of the "
        "augmentation needs",
    )
    num_workers: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="processes that read images; auto: the free cores, on a GPU at most 16, on the "
        "CPU at most 2",
    )

    @property
    def max_pixels(self) -> int:
        """Number of pixels above which an image is rejected."""
        return int(self.max_megapixels * 1e6)

    @model_validator(mode="after")
    def _check_split_fractions(self) -> "DataConfig":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction} "
                f"leave no images to train on; their sum must stay below 1"
            )
        return self


class CacheConfig(Section):
    """The stores on disk that runs share."""

    max_gb: float = Field(
        50.0, gt=0, description="size of all stores; what was used longest ago is removed first"
    )

    @property
    def max_bytes(self) -> int:
        """Size of all stores in bytes."""
        return round(self.max_gb * 1e9)


class AugmentConfig(Section):
    """What happens to training images."""

    name: Annotated[str, AfterValidator(_check_augment_name)] = Field(
        "auto",
        description="none, light, medium, strong, or a pipeline saved with Albumentations "
        "(.json, .yaml); auto: medium",
    )
    rare_class_preset: Annotated[
        Literal["off", "light", "medium", "strong"], BeforeValidator(coerce_on_off)
    ] = Field("off", description="a stronger preset for the images of rare classes; off: none")
    rare_class_fraction: float = Field(
        0.2, gt=0, le=1, description="a class is rare with under this share of the largest's images"
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description="mix pairs of images and their losses by a Beta(mixup, mixup) share (Zhang et "
        "al. 2018); 0: never, 0.2 is usual",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description="put a box of one image into another, of a Beta(cutmix, cutmix) area, and mix "
        "their losses (Yun et al. 2019); 0: never, 1 is usual. With mixup, too, a coin decides",
    )

    @model_validator(mode="after")
    def _check_rare_below(self) -> "AugmentConfig":
        if self.rare_class_preset == "off" and self.rare_class_fraction != 0.2:
            raise ValueError(
                "rare_class_fraction cannot apply to rare_class_preset=off; name a preset for rare classes"
            )
        return self
