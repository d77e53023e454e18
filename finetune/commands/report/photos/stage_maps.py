"""Pictures of the feature maps of each stage of a network for one photo."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from finetune.commands.report.photos.run_network import RunNetwork
from finetune.commands.report.photos.thumbnails import encode_png
from finetune.data.images.resample import Pixels
from finetune.models.layer_groups import assign_module_groups, find_layer_groups
from finetune.report.photos.network_pictures import StageMaps

NUM_CHANNELS = 8
"""Feature maps of a stage."""

MAX_STAGES = 5
_MAX_SIDE_PX = 64
_MAX_PREFIX_TOKENS = 8


def draw_stage_maps(network: RunNetwork, pixels: Pixels) -> tuple[StageMaps, ...]:
    """Return the feature maps of each stage that has a grid, from the input to the output.

    A stage is a layer group; of many, they are evenly spaced.

    Args:
        network: Network of the run.
        pixels: Photo as the network sees it, (H, W, C).
    """
    groups = find_layer_groups(network.network)
    members = assign_module_groups(network.network, groups)
    with torch.inference_mode(), _keep_last_outputs(network.network, members) as outputs:
        network.network(network.prepare([pixels]))
    channels_last = getattr(network.network, "output_fmt", "") == "NHWC"
    stages = []
    for index in sorted(outputs, reverse=True):  # groups are in the order from the head
        grid = _arrange(outputs[index], has_channels_last=channels_last)
        if grid is not None and index > 0:
            stages.append((groups[index].name, grid))
    return tuple(_draw(name, grid) for name, grid in _select(stages))


@contextmanager
def _keep_last_outputs(
    network: nn.Module, members: dict[str, frozenset[int]]
) -> Iterator[dict[int, Tensor]]:
    """Collect the last output with positions of each layer group within the block."""
    outputs: dict[int, Tensor] = {}
    handles = []
    for name, module in network.named_modules():
        groups = members.get(name, frozenset())
        if len(groups) != 1:
            continue
        (group,) = groups

        def keep(_: nn.Module, __: Any, output: Any, group: int = group) -> None:
            if isinstance(output, Tensor) and _may_have_grid(output):
                outputs[group] = output.detach().float().cpu()

        handles.append(module.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _may_have_grid(output: Tensor) -> bool:
    """Return whether an output of one image has positions: pooled ones have sides of 1."""
    return output.ndim in (3, 4) and output.shape[0] == 1 and list(output.shape[1:]).count(1) < 2


def _arrange(output: Tensor, *, has_channels_last: bool) -> NDArray[np.float32] | None:
    """Return feature maps (D, H, W) of an output; None for one without a grid."""
    if output.ndim == 4:
        _, first, second, third = output.shape
        if first == second != third or (has_channels_last and first == second):
            output = output.permute(0, 3, 1, 2)
        maps = output[0]
    else:
        _, num_tokens, _ = output.shape
        side = math.isqrt(num_tokens)
        if num_tokens - side * side > _MAX_PREFIX_TOKENS:
            return None
        grid = output[0, num_tokens - side * side :]  # without class and register tokens
        maps = grid.transpose(0, 1).reshape(-1, side, side)
    if min(maps.shape[1:]) < 2:
        return None
    finite: NDArray[np.float32] = np.nan_to_num(maps.numpy())
    return finite


def _select(
    stages: Sequence[tuple[str, NDArray[np.float32]]],
) -> list[tuple[str, NDArray[np.float32]]]:
    if len(stages) <= MAX_STAGES:
        return list(stages)
    rows = [round(index * (len(stages) - 1) / (MAX_STAGES - 1)) for index in range(MAX_STAGES)]
    return [stages[row] for row in rows]


def _draw(name: str, maps: NDArray[np.float32]) -> StageMaps:
    variance = maps.var(axis=(1, 2))
    shown = np.argsort(-variance, kind="stable")[:NUM_CHANNELS].tolist()
    height, width = maps.shape[1:]
    return StageMaps(
        name,
        len(maps),
        (height, width),
        [(channel, encode_png(_draw_map(maps[channel]))) for channel in shown if variance[channel]],
        float((variance == 0).mean()),
    )


def _draw_map(values: NDArray[np.float32]) -> Image.Image:
    """Return a map in grey: black is its smallest value, white its largest."""
    low, high = values.min(), values.max()
    grey = Image.fromarray(np.rint((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8))
    if max(grey.size) > _MAX_SIDE_PX:
        grey.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.BOX)
    return grey
