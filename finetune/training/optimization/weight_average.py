"""Running mean of the weights over the last steps of a run, which generalises better than the end.

Stochastic weight averaging (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407), step by step
and over the last steps of a run only. Training itself continues from the unaveraged weights. The
statistics of a BatchNorm that is not frozen are averaged as well, not recomputed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Running mean of a module's parameters and floating-point buffers.

    Lightning's ``WeightAveraging`` is no substitute when averaging starts late: until then it
    validates and saves the initial weights, and a checkpoint written during validation swaps
    averaged and current weights.

    Args:
        module: Module whose weights are averaged.
        start_step: Number of optimizer steps left out at the beginning.
    """

    def __init__(self, module: nn.Module, *, start_step: int) -> None:
        self.module = module
        self.start_step = start_step
        self.count = 0
        self._means: dict[str, Tensor] = {}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The means by state-dict name; empty before the first averaged step."""
        return self._means

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after a step to the mean.

        Args:
            step: Number of the step, from 1; ``start_step`` and earlier ones are ignored.
        """
        if step <= self.start_step:
            return
        current = _select_float_tensors(self.module)
        self.count += 1
        if self.count == 1:
            self._means = {name: tensor.clone() for name, tensor in current.items()}
            return
        torch._foreach_lerp_(list(self._means.values()), list(current.values()), 1 / self.count)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "from_step": self.start_step,
            "count": self.count,
            "tensors": dict(self._means),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state, unless its averaging began at another step, as in a shorter run."""
        if state_dict["from_step"] == self.start_step:
            self.count, self._means = state_dict["count"], dict(state_dict["tensors"])

    def move_to_module(self) -> None:
        """Move the means to the devices and memory layouts of the module's own tensors."""
        current = _select_float_tensors(self.module)
        self._means = {
            name: torch.empty_like(current[name]).copy_(tensor)
            for name, tensor in self._means.items()
        }


def _select_float_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and floating-point buffers by state-dict name."""
    return {
        name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()
    }
