"""Adaptation of the preprocessing of RGB weights to images of other channels."""

from collections.abc import Sequence
from itertools import cycle, islice

from finetune.errors import ModelError
from finetune.models.pretrained.weights import WeightsSource
from finetune.units import format_count


def adapt_statistics(values: Sequence[float], num_channels: int, *, key: str) -> tuple[float, ...]:
    """Return the mean or standard deviation of each channel for another number of channels.

    The first convolution of RGB weights is summed over its inputs for 1 channel and repeated for
    others (timm's ``adapt_input_conv``); so are the values averaged for 1 and repeated for others.

    Args:
        values: Values of each channel, or one for all, of pixels in [0, 1].
        num_channels: Number of channels C.
        key: "mean" or "std", for messages.

    Raises:
        ModelError: There are values for other channels that cannot be repeated.
    """
    numbers = [float(value) for value in values]
    if len(numbers) == num_channels:
        return tuple(numbers)
    if num_channels == 1 and len(numbers) == 3:
        return (sum(numbers) / 3,)
    if len(numbers) in (1, 3):
        return tuple(islice(cycle(numbers), num_channels))
    raise ModelError(
        f"pretrained_cfg has {format_count(len(numbers), 'value')} of {key}, but images have "
        f"{format_count(num_channels, 'channel')} (data.channels). State one value, or one for "
        f"each channel."
    )


def get_stated_channels(source: WeightsSource) -> int | None:
    """Return the channels that a folder of weights states; None for other sources."""
    size = source.overlay.get("input_size")
    return None if size is None else int(size[0])


def check_weights_channels(
    source: WeightsSource, stated: int | None, num_channels: int, *, can_adapt: bool
) -> None:
    """Check that weights for other channels can be adapted to those of the images.

    Args:
        source: Source of the weights.
        stated: Channels that it states; None for none.
        num_channels: Channels of the images.
        can_adapt: Whether timm adapts the first convolution, which it does for RGB and grey.

    Raises:
        ModelError: They cannot.
    """
    if stated is None or stated == num_channels or (can_adapt and stated in (1, 3)):
        return
    raise ModelError(
        f"{source.label} has weights for {format_count(stated, 'input channel')}, but images are "
        f"loaded with {num_channels}. Set data.channels={stated}, or pass other --weights."
    )
