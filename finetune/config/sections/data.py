"""Config sections on images: their location, loading, caching and augmentation."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from finetune.config.section import Auto, Section, YamlForm, coerce_on_off
from finetune.config.sections.channels import ChannelKeys
from finetune.config.sections.labels import LabelKeys
from finetune.config.sections.tables import TableKeys
from finetune.lookup import suggest_name
from finetune.types import PixelRange, ReadOptions, Split
from finetune.units import format_value, format_yaml_value

ImageSize = Annotated[int, Field(ge=8, le=4096)]


def _parse_side_pair(value: Any) -> Any:
    """Parse 128,224 as on the command line, and 128 as both sides."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    sides = value.split(",") if isinstance(value, str) and "," in value else value
    if sides != "auto" and (not isinstance(sides, list | tuple) or len(sides) != 2):
        raise ValueError(
            f"found {format_yaml_value(value)}, expected a side in pixels, as 128, the first and "
            f"the last, as 128,224, or auto"
        )
    return sides


def _check_cache_location(value: str) -> str:
    """Accept auto, on, off or a folder, unless it looks like a misspelling of one of them."""
    modes = ("auto", "on", "off")
    if value in modes or "/" in value or Path(value).is_dir():
        return value
    raise ValueError(
        f"'{value}' is neither {', '.join(modes)} nor a folder.{suggest_name(value, modes)} "
        f"Write a new folder with a slash, as in ./{value}"
    )


_SPLIT_OF = {"valid": Split.VAL, "validation": Split.VAL, **{split.value: split for split in Split}}
_SPLIT_PAIR = re.compile(rf"\s*(.+?)\s*=\s*({'|'.join(_SPLIT_OF)})\s*(?:,|$)", re.IGNORECASE)
"""Name of a folder, which may contain commas, and its split."""


def _read_split_pairs(text: str) -> list[tuple[str, Split]]:
    """Return the names of ``data.splits`` with their splits; none if a part is no such pair."""
    pairs = []
    position = 0
    while position < len(text):
        match = _SPLIT_PAIR.match(text, position)
        if match is None:
            return []
        pairs.append((match[1], _SPLIT_OF[match[2].lower()]))
        position = match.end()
    return pairs


def _check_splits(value: Any) -> Any:
    """Return ``data.splits`` as text, from text or from a mapping of a config file."""
    if isinstance(value, Mapping) and value:
        value = ",".join(f"{name}={format_value(split)}" for name, split in value.items())
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"found {format_yaml_value(value)}, expected auto, none or NAME=SPLIT,NAME=SPLIT"
        )
    if value in ("auto", "none"):
        return value
    pairs = _read_split_pairs(value)
    if len({name.casefold() for name, _ in pairs}) < max(1, len(pairs)):
        problem = "names a folder twice" if pairs else "has a part that is not NAME=SPLIT"
        raise ValueError(
            f"'{value}' {problem}; expected auto, none, or the folders of the splits train, val "
            f"and test, as in Training=train,Testing=test"
        )
    return ",".join(f"{name}={split.value}" for name, split in pairs)


def _check_pixel_range(value: Any) -> str:
    """Accept auto, full or LOW:HIGH, with numbers in their shortest form."""
    if value in ("auto", "full"):
        return str(value)
    with suppress(ValueError):
        if isinstance(value, str):
            return str(PixelRange.parse(value))
    raise ValueError(
        f"{format_yaml_value(value)} is neither auto, full nor LOW:HIGH with LOW below HIGH, such "
        f"as 0:4095"
    )


class DataConfig(LabelKeys, TableKeys, ChannelKeys):
    """Images and how they are loaded."""

    splits: Annotated[str, BeforeValidator(_check_splits), YamlForm("{")] = Field(
        "auto",
        description="folders of the splits, as in Training=train,Testing=test, or such values in "
        "the column split of a CSV; none: the folders are classes, and a column split is ignored; "
        "auto: by their names (train, val, test, Training, seg_test, ...)",
    )
    image_size: ImageSize | Auto = Field(
        "auto", description="side of the square input in pixels; auto: that of the weights"
    )
    train_image_size: Annotated[
        tuple[ImageSize, ImageSize] | Auto, BeforeValidator(_parse_side_pair)
    ] = Field(
        "auto",
        description="side of training images in pixels, constant (128) or growing linearly from "
        "the first to the last epoch (128,224); smaller images are cheaper, and objects in random "
        "crops of them look as large as in whole images of image_size (FixRes, Touvron et al. "
        "2019); auto: so that they do on average, with pretrained weights and image_size of 160 or "
        "more",
    )
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of images for validation if the data have no split"
    )
    test_fraction: float = Field(
        0.0, ge=0, lt=1, description="fraction of images for a final test if the data have no split"
    )
    split_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None,
        description="seed of splits and folds that are drawn; null: seed. Runs with other seeds "
        "and the same split can be compared, and averaged",
    )
    min_images_per_class: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="minimum number of images of a class; auto: one per split. Classes with "
        "fewer images than splits are used for training only",
    )
    leakage: Literal["warn", "drop", "move", "error", "ignore"] = Field(
        "warn",
        description="action if validation or test images of a given split have duplicates in "
        "training; a random split keeps duplicates together if its groups allow it. warn: also "
        "evaluate without them; drop: remove the duplicates from training; move: move all "
        "duplicates to training; error: stop; ignore: do not search for duplicates",
    )
    max_megapixels: float = Field(
        178.0,
        gt=0,
        le=178.9,
        description="larger images are rejected as decompression bombs; Pillow's limit is 178.9",
    )
    pixel_range: Annotated[str, BeforeValidator(_check_pixel_range)] = Field(
        "auto",
        description="values of black and white in images of more than 8 bits; auto: 0 to the "
        "largest value of 8, 10, 12, 14 or 16 bits, the fewest that hold all values of 16-bit "
        "files; full: all bits of each file; LOW:HIGH, such as 0:4095 or -1000:400, also lets "
        "signed, 32-bit and float images be read. Files that state their bits are scaled by these, "
        "unless LOW:HIGH is a window such as 100:3000",
    )
    cache: Annotated[str, AfterValidator(_check_cache_location), BeforeValidator(coerce_on_off)] = (
        Field(
            "auto",
            description="cache of decoded images on disk: on, off, or its folder; auto: on with "
            "more than one epoch, if it fits",
        )
    )
    cache_shorter_side: Annotated[int, Field(ge=8, le=8192)] | Auto = Field(
        "auto",
        description="shorter side of cached training images in pixels; auto: as needed by the "
        "smallest random crop of the augmentation",
    )
    num_workers: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="loader processes per training process; auto: the free cores, at most 16 "
        "with a GPU and 2 on the CPU",
    )

    @property
    def split_setting(self) -> Literal["auto", "none"] | dict[str, Split]:
        """How splits are found: by their names, not at all, or the split of each name."""
        if self.splits == "auto":
            return "auto"
        return "none" if self.splits == "none" else dict(_read_split_pairs(self.splits))

    @property
    def read_options(self) -> ReadOptions:
        """How image files are read."""
        return ReadOptions(
            max_pixels=int(self.max_megapixels * 1e6),
            num_channels=self.channels,
            bit_depth=self.bit_depth,
            pixel_range=(
                None if self.pixel_range in ("auto", "full") else PixelRange.parse(self.pixel_range)
            ),
        )

    @model_validator(mode="after")
    def _check_split_fractions(self) -> "DataConfig":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction} "
                f"leave no training images; their sum must be below 1"
            )
        return self


class CacheConfig(Section):
    """Caches on disk, which all runs share."""

    max_gb: float = Field(
        50.0,
        gt=0,
        description="maximum size of all caches; the least recently used are removed first",
    )

    @property
    def max_bytes(self) -> int:
        """Maximum size of all caches in bytes."""
        return round(self.max_gb * 1e9)
