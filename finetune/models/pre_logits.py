"""Pooled features before the classifier of a network, captured in the pass that gives the logits.

They are those of timm's contract, ``forward_head(forward_features(x), pre_logits=True)``: the input
of the layer that ``get_classifier`` returns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finetune.errors import ModelError


@dataclass(slots=True)
class CapturedFeatures:
    """Inputs of the classifiers of a network in its latest forward passes.

    Attributes:
        inputs: Input of each call of a classifier since the last ``pop``, with its module.
    """

    inputs: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def pop(self) -> Tensor:
        """Return the features of the images of the passes since the last call, float32, (B, D).

        They are means: over the positions that a classifier is applied to, over several passes of
        the same images in other views, and over several classifiers, or, where those differ in
        width, side by side.

        Raises:
            ModelError: The network did not call its classifier.
        """
        by_module: dict[nn.Module, list[Tensor]] = {}
        for module, inputs in self.inputs:
            by_module.setdefault(module, []).append(_pool(inputs.detach().float(), module))
        self.inputs.clear()
        means = [torch.stack(views).mean(dim=0) for views in by_module.values()]
        if not means:
            raise ModelError(
                "The features of the network cannot be read: its forward pass does not call the "
                "layer that get_classifier returns. Return the layer that computes the logits."
            )
        if len({one.shape for one in means}) > 1:
            return torch.cat(means, dim=1)
        return torch.stack(means).mean(dim=0)


def find_classifiers(network: nn.Module) -> tuple[nn.Module, ...]:
    """Return the layers that compute the logits of a network; empty if it does not name them.

    A model of another runtime, such as an ONNX file, has none.
    """
    get_classifier = getattr(network, "get_classifier", None)
    if not callable(get_classifier):
        return ()
    classifier = get_classifier()
    is_several = isinstance(classifier, tuple | list | nn.ModuleList)
    modules = tuple(classifier) if is_several else (classifier,)
    return tuple(m for m in modules if isinstance(m, nn.Module) and not _is_identity(m))


@contextmanager
def capture_features(network: nn.Module) -> Iterator[CapturedFeatures]:
    """Capture the features of the forward passes of a network within the block.

    Raises:
        ModelError: The network does not name its classifier.
    """
    classifiers = find_classifiers(network)
    if not classifiers:
        raise ModelError(
            f"{type(network).__name__} gives no features: it does not name its classifier."
        )
    captured = CapturedFeatures()

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.inputs.append((module, inputs[0]))

    handles = [module.register_forward_pre_hook(keep) for module in classifiers]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _is_identity(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)


def _pool(inputs: Tensor, module: nn.Module) -> Tensor:
    """Return the means over positions of a classifier's input, shape (B, D)."""
    if inputs.ndim <= 2:
        return inputs
    # a convolution has its channels in the second axis, a linear layer in the last
    is_channels_first = isinstance(module, nn.Conv2d) or (
        inputs.ndim == 4 and not isinstance(module, nn.Linear)
    )
    axes = range(2, inputs.ndim) if is_channels_first else range(1, inputs.ndim - 1)
    return inputs.mean(dim=tuple(axes))
