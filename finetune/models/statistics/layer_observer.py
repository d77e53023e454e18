"""Observation of the activations of a network and of the outputs of its layer groups.

Activations are found where they are called: as modules, or as functions within the forward method
of a module. The network is left as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetune.models.layer_groups import LayerGroup, assign_module_groups
from finetune.models.statistics.activation_kinds import find_function_kind, find_module_kind
from finetune.models.statistics.channel_statistics import ChannelStatistics

STAGE = "stage"
"""Kind of the output of a layer group of several layers."""


@dataclass(slots=True)
class ObservedLayer:
    """An activation or the output of a layer group, and its statistics.

    Attributes:
        name: Path of the module; of a function, that of the layer whose output it takes, with the
            kind. From the second call in a forward pass on, with the number of the call.
        group: Layer group.
        statistics: Statistics of its outputs.
    """

    name: str
    group: str
    statistics: ChannelStatistics


@dataclass(slots=True)
class _State:
    """State of a forward pass.

    Attributes:
        running: Names of the running modules, from the outermost.
        source: Name of the layer that ended last.
        activation: Name of the running module that is an activation; empty for none.
        num_calls: Calls of each name.
    """

    running: list[str] = field(default_factory=list)
    source: str = ""
    activation: str = ""
    num_calls: dict[str, int] = field(default_factory=dict)


class LayerObserver:
    """Observer of the layers of a network, in the order in which they run.

    Args:
        network: The network.
        groups: Its layer groups.

    Attributes:
        layers: Observed layers by name.
    """

    def __init__(self, network: nn.Module, groups: Sequence[LayerGroup]) -> None:
        self.network = network
        self.layers: dict[str, ObservedLayer] = {}
        self._modules: Mapping[str, nn.Module] = dict(network.named_modules())
        self._groups = [group.name for group in groups]
        self._module_groups = assign_module_groups(network, groups)
        names = {group.name for group in groups[1:]}
        self._stages = {n for n in names if any(True for _ in self._get_children(n))}
        self._prefers_channels_last = getattr(network, "output_fmt", "") == "NHWC"

    def _get_children(self, name: str) -> Iterator[nn.Module]:
        module = self._modules.get(name)
        return iter(()) if module is None else module.children()

    @contextmanager
    def observe(self) -> Iterator[None]:
        """Observe one forward pass in the block."""
        state = _State()
        handles = []
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(self._build_entry(name, state)))
            handles.append(module.register_forward_hook(self._build_exit(name, state)))
        try:
            with _FunctionWatch(lambda kind, output: self._add_function(kind, output, state)):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _build_entry(self, name: str, state: _State) -> Callable[..., None]:
        is_activation = find_module_kind(self._modules[name]) is not None

        def enter(module: nn.Module, inputs: Any) -> None:
            del module, inputs
            state.running.append(name)
            if is_activation and not state.activation:
                state.activation = name

        return enter

    def _build_exit(self, name: str, state: _State) -> Callable[..., None]:
        kind = find_module_kind(self._modules[name])
        is_layer = next(self._modules[name].children(), None) is None

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            state.running.pop()
            if kind is not None and state.activation == name:
                state.activation = ""
                self._add(name, kind, output, state)
            elif name in self._stages:
                self._add(name, STAGE, output, state)
            if is_layer and kind is None:
                state.source = name

        return leave

    def _add_function(self, kind: str, output: Any, state: _State) -> None:
        """Add the output of a function that was called outside of an activation module."""
        if not state.activation:
            place = state.source or (state.running[-1] if state.running else "")
            self._add(f"{place} ({kind})" if place else kind, kind, output, state)

    def _add(self, name: str, kind: str, output: Any, state: _State) -> None:
        """Add an output to the statistics of its layer."""
        number = state.num_calls[name] = state.num_calls.get(name, 0) + 1
        place = state.source if name not in self._modules else name
        values = self._arrange(output, state.source, kind)
        if values is None:
            return
        key = name if number == 1 else f"{name} {number}"
        layer = self.layers.get(key)
        if layer is None:
            group = self._groups[min(self._module_groups[place])]
            layer = self.layers[key] = ObservedLayer(key, group, ChannelStatistics(kind))
        layer.statistics.update(values)

    def _arrange(self, output: Any, source: str, kind: str) -> Tensor | None:
        """Return an output as (B, positions, C); None if it is none of images.

        Args:
            output: (B, C), (B, tokens, C), (B, C, H, W) or (B, H, W, C).
            source: Name of the layer that ended last.
            kind: Kind of the activation; a softmax keeps its last dimension.
        """
        if not isinstance(output, Tensor) or output.ndim < 2 or not output.is_floating_point():
            return None
        if kind == "softmax" or output.ndim in (2, 3):
            return output.reshape(len(output), -1, output.shape[-1])
        if output.ndim != 4 or output.numel() == 0:
            return None
        if self._has_channels_last(output, self._modules.get(source), kind):
            return output.flatten(1, 2)
        return output.flatten(2).transpose(1, 2)

    def _has_channels_last(self, output: Tensor, source: nn.Module | None, kind: str) -> bool:
        if kind != STAGE:
            if isinstance(source, nn.Linear):
                return True
            if isinstance(source, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm):
                return False
        is_first, is_last = output.shape[2] == output.shape[3], output.shape[1] == output.shape[2]
        return is_last if is_first != is_last else self._prefers_channels_last


class _FunctionWatch(TorchFunctionMode):
    """Mode in which the outputs of activation functions are passed on to a callback."""

    def __init__(self, on_output: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._on_output = on_output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function and pass on its output if it is an activation."""
        del types
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        kind = find_function_kind(func, args, kwargs)
        if kind is not None:
            self._on_output(kind, output)
        return output
