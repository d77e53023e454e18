"""Last layer of a network whose output still has positions of the image."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from finetune.models.classifier import eval_mode

Layout = Literal["channels_first", "channels_last", "tokens"]

MIN_POSITIONS = 9
"""Least number of positions of a map: with fewer, it says nothing of where."""

_MAX_PREFIX_TOKENS = 8

_PASSIVE_LAYERS = (nn.Dropout, nn.Identity, nn.Linear, nn.Softmax)
"""Layers inside of an attention, or that pass on what the layer before them computes."""


@dataclass(frozen=True, slots=True)
class SpatialLayer:
    """A layer and the positions of its output.

    Attributes:
        name: Path of the module in the network.
        layout: Order of its output: (B, C, H, W), (B, H, W, C) or (B, tokens, C).
        height: Rows of positions.
        width: Columns of positions.
    """

    name: str
    layout: Layout
    height: int
    width: int

    def arrange(self, output: Tensor) -> Tensor:
        """Return an output of the layer, or a gradient of it, as (B, C, H, W)."""
        if self.layout == "channels_first":
            return output
        if self.layout == "channels_last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, output.shape[1] - self.height * self.width :]
        return tokens.transpose(1, 2).reshape(len(output), -1, self.height, self.width)


def find_spatial_layer(network: nn.Module, images: Tensor) -> SpatialLayer | None:
    """Find the last layer with positions that the predicted class depends on; None without one.

    The tokens of the last block of a vision transformer are none where the class token alone is
    read: their gradient is zero. The layer before the last attention is taken then.

    Args:
        network: Network from images (B, C, H, W) to logits (B, K).
        images: Two or more normalised images, shape (B, C, H, W).
    """
    outputs: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    handles = [
        module.register_forward_hook(_build_recorder(name, outputs))
        for name, module in modules.items()
        if name and not isinstance(module, _PASSIVE_LAYERS)
    ]
    try:
        with eval_mode(network), torch.enable_grad():
            logits = network(images.detach().clone().requires_grad_(True))
            score = logits.amax(dim=1).sum()
            for name, output in reversed(outputs.items()):
                layer = _find_positions(network, name, output, images)
                if layer is not None and _has_gradient(score, output, layer):
                    return layer
    finally:
        for handle in handles:
            handle.remove()
    return None


def _build_recorder(name: str, outputs: dict[str, Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        outputs.pop(name, None)  # a module that is called again stands where it was called last
        if isinstance(output, Tensor) and output.ndim in (3, 4):
            outputs[name] = output

    return record


def _find_positions(
    network: nn.Module, name: str, output: Tensor, images: Tensor
) -> SpatialLayer | None:
    """Return the positions of an output; None if it has none, or too few."""
    if len(output) != len(images):  # windows of an attention
        return None
    if output.ndim == 3:
        return _find_token_grid(network, name, output.shape[1], images)
    _, first, second, third = output.shape
    is_last = _has_shape_of(images, first, second)
    is_first = _has_shape_of(images, second, third)
    if is_first and is_last:
        is_last = getattr(network, "output_fmt", "") == "NHWC"
    if not (is_first or is_last):
        return None
    layout: Layout = "channels_last" if is_last else "channels_first"
    height, width = (first, second) if is_last else (second, third)
    return SpatialLayer(name, layout, height, width) if height * width >= MIN_POSITIONS else None


def _find_token_grid(
    network: nn.Module, name: str, num_tokens: int, images: Tensor
) -> SpatialLayer | None:
    """Return the grid of the last tokens, after those of the class and registers."""
    stated = getattr(network, "num_prefix_tokens", None)
    prefixes = range(_MAX_PREFIX_TOKENS + 1) if stated is None else (int(stated),)
    for num_prefix in prefixes:
        count = num_tokens - num_prefix
        if count < MIN_POSITIONS:
            return None
        height = round(math.sqrt(count * images.shape[2] / images.shape[3]))
        if height and count % height == 0 and _has_shape_of(images, height, count // height):
            return SpatialLayer(name, "tokens", height, count // height)
    return None


def _has_shape_of(images: Tensor, height: int, width: int) -> bool:
    """Return whether a grid has the aspect ratio of the images, up to one row or column."""
    image_height, image_width = images.shape[2:]
    if height > image_height or width > image_width:
        return False
    difference = abs(height * image_width - width * image_height)
    is_square = image_height == image_width
    return difference == 0 if is_square else difference < max(image_height, image_width)


def _has_gradient(score: Tensor, output: Tensor, layer: SpatialLayer) -> bool:
    """Return whether a score depends on any position of an output."""
    if not output.requires_grad:
        return False
    try:
        (gradient,) = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
    except RuntimeError:  # the output was changed in place by a later layer
        return False
    return gradient is not None and bool(layer.arrange(gradient).any())
