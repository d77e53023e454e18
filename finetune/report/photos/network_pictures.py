"""Pictures of what a network has learnt: its first filters, and its feature maps of one photo."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FilterSheet:
    """Filters of the first convolution, side by side.

    Attributes:
        layer: Name of the layer.
        picture: Data URI; a pixel is a weight.
        width_px: Width of the picture in pixels.
        num_shown: Filters on the sheet, those of the largest norm.
        num_filters: Filters of the layer.
        side: Height and width of a filter.
        is_color: Whether a filter is shown in RGB.
        num_channels: Channels of a filter.
    """

    layer: str
    picture: str
    width_px: int
    num_shown: int
    num_filters: int
    side: tuple[int, int]
    is_color: bool
    num_channels: int


@dataclass(frozen=True, slots=True)
class StageMaps:
    """Feature maps of a stage for one photo.

    Attributes:
        name: Layer group that the stage ends with.
        num_channels: Feature maps of the stage.
        size: Height and width of a map.
        channels: Index and data URI of the maps with the largest variance.
        constant_fraction: Fraction of the maps that are the same everywhere.
    """

    name: str
    num_channels: int
    size: tuple[int, int]
    channels: Sequence[tuple[int, str]]
    constant_fraction: float


@dataclass(frozen=True, slots=True)
class NetworkPictures:
    """Pictures of a network.

    Attributes:
        path: Path of the photo.
        photo: Data URI of the photo as the network sees it.
        stages: Stages from the input on.
        filters: Filters of the first convolution; None without any to show.
        notes: Sentences on what is not shown, and why.
    """

    path: str
    photo: str
    stages: Sequence[StageMaps]
    filters: FilterSheet | None
    notes: Sequence[str]
