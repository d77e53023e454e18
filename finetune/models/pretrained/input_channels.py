"""Adaptation of the preprocessing of RGB weights to images of other channels."""

from collections.abc import Sequence
from itertools import cycle, islice

from finetune.errors import ModelError


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
        f"pretrained_cfg has {len(numbers)} values of {key}, but images have {num_channels} "
        f"channels (data.channels). State one value, or one for each channel."
    )
