"""Config keys on the channels of images, their bits, and their normalisation."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.config.section import Section


class ChannelKeys(Section):
    """Keys of the section ``data`` that say what the pixels of an image are."""

    channels: Annotated[int, Field(ge=1, le=256)] = Field(
        3,
        description="channels of an image: 1 grey, 2 grey and opacity, 3 RGB with transparent "
        "pixels on white, 4 RGB and opacity; any number for TIFF files of as many bands",
    )
    bit_depth: Literal[8, 16] = Field(
        8,
        description="bits of a channel that are kept; 16 takes twice the memory and keeps what "
        "16-bit and float images have below the 256 levels of 8 bits",
    )
    normalize: Literal["pretrained", "dataset"] = Field(
        "pretrained",
        description="mean and standard deviation of the pixels: pretrained: those of the weights, "
        "or of the backbone if it has random ones; dataset: those of the training images, "
        "measured at the start of a run",
    )
