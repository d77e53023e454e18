"""Averaged weights: the mean over the last steps of a run, which generalises better than their end.

Stochastic weight averaging (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407), from step to
step and over the tail of a run alone. Training itself goes on from the weights as they are. The
statistics of a BatchNorm that is not frozen are averaged, too, and not computed anew.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The running mean of a module's parameters and of the statistics in its buffers.

    Args:
        module: Whose weights are averaged.
        start_step: Optimizer steps that are left out at the beginning.
    """

    def __init__(self, module: nn.Module, *, start_step: int) -> None:
        self.module = module
        self.start_step = start_step
        self.count = 0
        self._means: dict[str, Tensor] = {}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The means by name; empty before the first step that counts."""
        return self._means

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1; earlier ones are passed over."""
        if step <= self.start_step:
            return
        now = _select_float_tensors(self.module)
        self.count += 1
        if self.count == 1:
            self._means = {name: tensor.clone() for name, tensor in now.items()}
            return
        torch._foreach_lerp_(list(self._means.values()), list(now.values()), 1 / self.count)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on."""
        return {
            "from_step": self.start_step,
            "count": self.count,
            "tensors": dict(self._means),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; anew, if it began at another step, in a longer run."""
        if state_dict["from_step"] == self.start_step:
            self.count, self._means = state_dict["count"], dict(state_dict["tensors"])

    def move_to_module(self) -> None:
        """Bring the means to where the module's own tensors lie, and into their layout."""
        now = _select_float_tensors(self.module)
        self._means = {
            name: torch.empty_like(now[name]).copy_(tensor) for name, tensor in self._means.items()
        }


def _select_float_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and floating buffers by their names in the state dict."""
    return {
        name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()
    }
