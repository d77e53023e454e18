"""Config section on augmentation: presets, saved pipelines, geometry and mixing."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from finetune.config.section import Auto, Section, Switch, coerce_on_off
from finetune.lookup import suggest_name

AUGMENT_NAMES = ("none", "light", "medium", "strong")
"""Names of the built-in augmentations; a contract test compares them with the table."""

PRESET_CROP_SCALES = {"light": 0.5, "medium": 0.35, "strong": 0.2}
"""Smallest area of random crops of each preset; a contract test compares them with the table."""

DEFAULT_PRESET = "medium"
"""Preset that ``augment.name=auto`` stands for."""

JITTERED_CHANNELS = (1, 3)
"""Channels of images for which color jitter is defined; others are augmented without it."""

GEOMETRY_KEYS = ("hflip", "vflip", "rot90", "min_crop_scale")
"""Keys of ``augment`` that a preset takes and a saved pipeline does not."""


def _check_augment_name(value: str) -> str:
    """Accept a preset, or the path of a pipeline saved with Albumentations."""
    if value in ("auto", *AUGMENT_NAMES) or value.lower().endswith((".json", ".yaml", ".yml")):
        return value
    raise ValueError(
        f"unknown preset '{value}'.{suggest_name(value, AUGMENT_NAMES)} "
        f"For a pipeline saved with Albumentations, give its .json or .yaml file"
    )


class AugmentConfig(Section):
    """Augmentation of training images."""

    name: Annotated[str, AfterValidator(_check_augment_name)] = Field(
        "auto",
        description="none, light, medium, strong, or a pipeline saved with Albumentations "
        "(.json, .yaml); auto: medium",
    )
    hflip: Switch = Field(
        "auto",
        description="flip half of the training images horizontally; auto: on, unless linear heads "
        "do worse on flipped images, as on digits and text",
    )
    vflip: Switch = Field(
        "auto",
        description="flip half of the training images vertically; auto: on if linear heads "
        "gain by it, as on images from above or through a microscope",
    )
    rot90: Switch = Field(
        "auto",
        description="rotate training images by a random multiple of 90 degrees; auto: as vflip",
    )
    min_crop_scale: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        "auto",
        description="smallest area of random crops, relative to the image; 1: whole images; auto: "
        "light 0.5, medium 0.35, strong 0.2, and more where linear heads do much worse on "
        "crops",
    )
    rare_class_preset: Annotated[
        Literal["off", "light", "medium", "strong"], BeforeValidator(coerce_on_off)
    ] = Field(
        "off",
        description="stronger preset for the images of rare classes; off: the same as for others",
    )
    rare_class_fraction: float = Field(
        0.2,
        gt=0,
        le=1,
        description="a class is rare if it has less than this fraction of the images of the "
        "largest",
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description="alpha of mixup: images and losses of pairs are mixed with a weight drawn "
        "from Beta(mixup, mixup) (Zhang et al. 2018); 0: off, 0.2 is common",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description="alpha of CutMix: a box of another image, with an area drawn from "
        "Beta(cutmix, cutmix), replaces part of an image, and their losses are mixed (Yun et al. "
        "2019); 0: off, 1 is common. With mixup, too, each batch uses one of them at random",
    )

    @model_validator(mode="after")
    def _check_geometry(self) -> "AugmentConfig":
        if self.name in ("auto", *PRESET_CROP_SCALES):
            return self
        for key in GEOMETRY_KEYS:
            value = getattr(self, key)
            if value == "auto" or (value == "off" and self.name == "none"):
                continue
            raise ValueError(
                f"{key}={value} cannot apply to name={self.name}, which "
                + ("changes no images" if self.name == "none" else "has its own steps")
                + ". Leave it out, or use the preset light, medium or strong"
            )
        return self

    @model_validator(mode="after")
    def _check_rare_class_fraction(self) -> "AugmentConfig":
        if self.rare_class_preset == "off" and self.rare_class_fraction != 0.2:
            raise ValueError(
                "rare_class_fraction cannot apply to rare_class_preset=off; set a preset"
            )
        return self
