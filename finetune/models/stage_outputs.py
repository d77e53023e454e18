"""Outputs of the stages of a network, averaged over positions, in the pass that computes logits.

A stage ends where ``split_last_groups`` would cut the network. The means are taken in the graph of
the network, right where an output is computed, so that nothing else is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from finetune.models.graph_split import build_graph_module, find_split_node, trace_network
from finetune.models.layer_groups import find_layer_groups

MAX_STAGES = 4
"""Earlier stages that are observed; of more layer groups, they are evenly spaced."""

_RESHAPING_LAYERS = (nn.Dropout, nn.Flatten, nn.Identity)
_RESHAPING_NAMES = {"contiguous", "flatten", "permute", "reshape", "transpose", "view"}


@dataclass(frozen=True, slots=True)
class Stage:
    """An earlier stage of a network.

    Attributes:
        name: Last layer group of the stage.
        depth: Number of layer groups after it, the head one of them.
        node_name: Name of the graph node that computes its output.
    """

    name: str
    depth: int
    node_name: str


def observe_stages(
    network: nn.Module, *, inner_node: str | None = None, max_stages: int = MAX_STAGES
) -> tuple[fx.GraphModule, tuple[Stage, ...]] | None:
    """Return the graph of a network that also returns the means of earlier stages, and the stages.

    Args:
        network: Module of images (B, C, H, W).
        inner_node: Name of a graph node whose output is returned, too.
        max_stages: Largest number of stages.

    Returns:
        Module from images to a tuple of the network's output, that of the inner node if there is
        one, and the mean of each stage (B, D); and the stages, from the head to the stem. None
        where the network cannot be traced or has no earlier stage.
    """
    trace = trace_network(network)
    if trace is None:
        return None
    traced, graph = trace
    stages = _select(_find_stages(network, graph), max_stages)
    if not stages:
        return None
    add_outputs(graph, network, inner_node=inner_node, stages=stages)
    return build_graph_module(network, traced, graph), stages


def add_outputs(
    graph: fx.Graph, network: nn.Module, *, inner_node: str | None, stages: Sequence[Stage]
) -> None:
    """Make a graph also return the output of a node and the means of stages, in a tuple.

    Args:
        graph: Graph of the network as it was traced, which is changed.
        network: The network.
        inner_node: Name of a node; None for none.
        stages: Stages of ``observe_stages``.
    """
    nodes = {node.name: node for node in graph.nodes}
    outputs = [] if inner_node is None else [nodes[inner_node]]
    channels_last = getattr(network, "output_fmt", "") == "NHWC"
    for stage in stages:
        node = nodes[stage.node_name]
        with graph.inserting_after(node):  # before a later layer changes it in place
            outputs.append(graph.call_function(average_positions, (node, channels_last)))
    if outputs:
        output = graph.output_node()
        output.args = ((output.args[0], *outputs),)


def average_positions(activations: Tensor, prefers_channels_last: bool) -> Tensor:
    """Return the mean over positions, float32, shape (B, D).

    Args:
        activations: (B, D, H, W) or (B, H, W, D), told apart by their equal sides; (B, tokens, D)
            or (B, D).
        prefers_channels_last: Which of the first two it is where the sides do not tell.
    """
    if activations.ndim == 4:
        _, first, second, third = activations.shape
        has_channels_last, has_channels_first = first == second, second == third
        if has_channels_last == has_channels_first:
            has_channels_last = prefers_channels_last
        return activations.mean((1, 2) if has_channels_last else (2, 3), dtype=torch.float32)
    if activations.ndim == 3:
        return activations.mean(1, dtype=torch.float32)
    return activations.float()


def _find_stages(network: nn.Module, graph: fx.Graph) -> list[Stage]:
    """Return all earlier stages, from the head to the stem, each with an output of its own."""
    groups = find_layer_groups(network)
    parameters: list[str] = []
    stages: list[Stage] = []
    seen: set[str] = set()
    for depth, group in enumerate(groups[:-1], start=1):
        parameters += group.parameter_names
        node = find_split_node(graph, parameters)
        if node is None:
            break
        node = _skip_reshapes(node, network)
        if node.name not in seen and depth > 1:
            stages.append(Stage(groups[depth].name, depth, node.name))
        seen.add(node.name)
    return stages


def _skip_reshapes(node: fx.Node, network: nn.Module) -> fx.Node:
    """Return the node before layers that only arrange its output for the next stage."""
    while node.args and isinstance(node.args[0], fx.Node):
        if node.op == "call_module":
            is_reshape = isinstance(network.get_submodule(str(node.target)), _RESHAPING_LAYERS)
        else:
            name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
            is_reshape = name in _RESHAPING_NAMES
        if not is_reshape:
            break
        node = node.args[0]
    return node


def _select(stages: Sequence[Stage], count: int) -> tuple[Stage, ...]:
    """Return ``count`` evenly spaced stages, the first and the last among them; all if fewer."""
    if len(stages) <= count:
        return tuple(stages)
    rows = [round(index * (len(stages) - 1) / (count - 1)) for index in range(count)]
    return tuple(stages[row] for row in rows)
