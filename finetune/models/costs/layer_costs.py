"""Costs of each layer of a network: output, parameters, multiply-adds, tensors kept for backward.

A cost belongs to the innermost module that is running when it arises: a residual sum to its block,
a product of an attention to the attention. The network itself has the name "".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

LOSS = "(loss)"
"""Name of what is outside of the network."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Cost of one module of a network, without those of the modules inside it.

    Attributes:
        name: Path in the network, "" for the network itself; ``LOSS`` for what is outside of it.
        kind: Class of the module.
        output_shape: Shape of its output for one image; empty if it is no tensor.
        num_parameters: Number of its parameters.
        num_macs: Multiply-adds of a forward pass of one image.
        activation_bytes: Size of the tensors that it keeps for the backward pass, per image.
        num_activations: Number of the elements of these tensors, per image.
        fixed_bytes: Size of those whose size does not depend on the batch, such as weights in
            another precision.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    num_parameters: int
    num_macs: int
    activation_bytes: int
    num_activations: int
    fixed_bytes: int

    def compute_bytes(self, batch_size: int) -> int:
        """Compute the size of the tensors that it keeps for a batch."""
        return self.fixed_bytes + batch_size * self.activation_bytes


def measure_layers(
    network: nn.Module,
    run_step: Callable[[int], Any],
    run_inference: Callable[[int], Any],
    *,
    small_batch: int = 2,
) -> tuple[LayerCost, ...]:
    """Measure the costs of all modules, in the order in which they run.

    Args:
        network: The network, in the mode and with the trainable parameters of the step.
        run_step: Function that computes the loss of a number of images, and returns it.
        run_inference: Function that runs the network on a number of images without gradients.
        small_batch: Images of the smaller of two batches; the other has twice as many.
    """
    small = _observe_saved(network, lambda: run_step(small_batch))
    large = _observe_saved(network, lambda: run_step(2 * small_batch))
    macs = _observe_macs(network, lambda: run_inference(small_batch))
    modules = dict(network.named_modules())
    order = dict.fromkeys(name for name in [*macs.order, *large.order] if name != LOSS)
    counted: set[int] = set()
    layers = []
    for name in [*order, *(name for name in modules if name not in order), LOSS]:
        layer = _build_layer(name, small, large, macs, small_batch)
        if name in modules:
            own = [p for p in modules[name].parameters(recurse=False) if id(p) not in counted]
            counted.update(map(id, own))
            layer = replace(
                layer,
                kind=type(modules[name]).__name__,
                num_parameters=sum(parameter.numel() for parameter in own),
            )
        layers.append(layer)
    return tuple(layers)


@dataclass(slots=True)
class _Observation:
    """Observations of one pass, by the name of the module."""

    order: list[str] = field(default_factory=list)
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_bytes: dict[str, int] = field(default_factory=dict)
    num_elements: dict[str, int] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    running: list[str] = field(default_factory=lambda: [LOSS])

    def add(self, counts: dict[str, int], value: int) -> None:
        """Add a value to the innermost running module."""
        name = self.running[-1]
        if value:
            counts[name] = counts.get(name, 0) + value


class _SavedTensor:
    """Holder of a tensor, alive as long as autograd keeps it for the backward pass."""

    def __init__(self, tensor: Tensor, name: str) -> None:
        # with its graph it would keep itself alive: the node that made it may hold this entry
        self.tensor = tensor.detach()
        self.name = name


def _observe_saved(network: nn.Module, run: Callable[[], Any]) -> _Observation:
    """Run a step and count the tensors that are kept when it has its loss, each storage once."""
    observation = _Observation()
    own = {_get_storage_id(parameter) for parameter in network.parameters()}
    saved: WeakSet[_SavedTensor] = WeakSet()
    in_order: dict[int, int] = {}

    def pack(tensor: Tensor) -> _SavedTensor:
        entry = _SavedTensor(tensor, observation.running[-1])
        in_order[id(entry)] = len(in_order)
        saved.add(entry)
        return entry

    with (
        _follow(network, observation, lambda: None),
        saved_tensors_hooks(pack, lambda entry: entry.tensor),
    ):
        loss = run()
    seen = set(own)
    for entry in sorted(saved, key=lambda entry: in_order[id(entry)]):
        storage_id = _get_storage_id(entry.tensor)
        if storage_id not in seen:
            seen.add(storage_id)
            num_bytes = entry.tensor.untyped_storage().nbytes()
            observation.running = [entry.name]
            observation.add(observation.num_bytes, num_bytes)
            observation.add(observation.num_elements, num_bytes // entry.tensor.element_size())
    del loss
    return observation


def _observe_macs(network: nn.Module, run: Callable[[], Any]) -> _Observation:
    """Run the network and count multiply-adds; two FLOPs each."""
    observation = _Observation()
    counter = FlopCounterMode(display=False)
    counted = 0

    def attribute() -> None:
        nonlocal counted
        total = int(counter.get_total_flops())
        observation.add(observation.flops, total - counted)
        counted = total

    # fused attention is not counted on the CPU (https://github.com/pytorch/pytorch/issues/195460)
    with (
        torch.no_grad(),
        counter,
        sdpa_kernel(SDPBackend.MATH),
        _follow(network, observation, attribute),
    ):
        run()
    return observation


@contextmanager
def _follow(
    network: nn.Module, observation: _Observation, on_change: Callable[[], None]
) -> Iterator[None]:
    """Keep track of the running module in the block; ``on_change`` is called before a change."""

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            on_change()
            observation.running.append(name)
            observation.order.append(name)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            del inputs
            on_change()
            observation.running.pop()
            if isinstance(output, Tensor):
                observation.output_shapes[name] = tuple(output.shape[1:])

        return hook

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave(name)))
    try:
        yield
        on_change()
    finally:
        for handle in handles:
            handle.remove()


def _build_layer(
    name: str, small: _Observation, large: _Observation, macs: _Observation, batch_size: int
) -> LayerCost:
    """Return the cost of a module, but for its parameters, from passes of two batch sizes."""
    few, many = small.num_bytes.get(name, 0), large.num_bytes.get(name, 0)
    few_elements, many_elements = small.num_elements.get(name, 0), large.num_elements.get(name, 0)
    bytes_per_image = (many - few) // batch_size
    return LayerCost(
        name=name,
        kind="",
        output_shape=macs.output_shapes.get(name, ()),
        num_parameters=0,
        num_macs=macs.flops.get(name, 0) // 2 // batch_size,
        activation_bytes=bytes_per_image,
        num_activations=(many_elements - few_elements) // batch_size,
        fixed_bytes=max(0, few - batch_size * bytes_per_image),
    )


def _get_storage_id(tensor: Tensor) -> int:
    """Return the same number for tensors that share their memory, and no other ones."""
    storage = tensor.untyped_storage()
    # without memory on the meta device
    return storage.data_ptr() or int(storage._cdata)
