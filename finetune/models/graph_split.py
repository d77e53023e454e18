"""Split of a network into a trunk and a last stage that takes the trunk's activations.

While the trunk is frozen, its activations for an image are constant. The split point is found in
the torch.fx graph of the network, not by the names of layers: any timm network that torch.fx can
trace is split, whatever its family.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from finetune.models.layer_groups import find_layer_groups


@dataclass(frozen=True, slots=True)
class SplitNetwork:
    """A network in two parts, which share its layers: training one part changes the network.

    Attributes:
        trunk: Module from images (B, C, H, W) to activations (B, ...).
        last_stage: Module from those activations to logits (B, K).
        node_name: Name of the graph node whose output the activations are.
    """

    trunk: fx.GraphModule
    last_stage: fx.GraphModule
    node_name: str


def split_before(network: nn.Module, parameters: Collection[str]) -> SplitNetwork | None:
    """Split a network so that all nodes that depend on the given parameters are in the last stage.

    The split point is the last node whose output, apart from parameters, is the only input of the
    last stage. Layers that depend on train or eval mode (dropout, stochastic depth) are traced in
    the mode that the network is in.

    Args:
        network: Module of images (B, C, H, W).
        parameters: Names of the parameters of the last stage in the network.

    Returns:
        The two parts; None where the network cannot be traced, or only the images themselves are
        such an input.
    """
    trace = trace_network(network)
    if trace is None:
        return None
    traced, graph = trace
    found = _find_split(graph, parameters)
    if found is None:
        return None
    split_node, last_stage = found
    constants = _find_constants(graph)
    trunk_graph = fx.Graph()
    new_nodes: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        new_nodes[node] = trunk_graph.node_copy(node, new_nodes.__getitem__)
        if node is split_node:
            break
    trunk_graph.output(new_nodes[split_node])
    last_stage_graph = fx.Graph()
    new_nodes = {split_node: last_stage_graph.placeholder("activations")}
    for node in graph.nodes:
        if node in last_stage or node in constants:
            new_nodes[node] = last_stage_graph.node_copy(node, new_nodes.__getitem__)
    return SplitNetwork(
        build_graph_module(network, traced, trunk_graph),
        build_graph_module(network, traced, last_stage_graph),
        split_node.name,
    )


def split_last_groups(network: nn.Module, depth: int) -> SplitNetwork | None:
    """Split a network before its last ``depth`` layer groups, the head one of them."""
    groups = find_layer_groups(network)[:depth]
    return split_before(network, [name for group in groups for name in group.parameter_names])


def find_split_node(graph: fx.Graph, parameters: Collection[str]) -> fx.Node | None:
    """Return the node of a traced network whose output is the only input of its last stage.

    Args:
        graph: Graph of ``trace_network``.
        parameters: Names of the parameters of the last stage.

    Returns:
        The node; None where only the images themselves are such an input.
    """
    found = _find_split(graph, parameters)
    return None if found is None else found[0]


def trace_network(network: nn.Module) -> tuple[nn.Module, fx.Graph] | None:
    """Return a copy of a network and its graph, whose constants the copy holds.

    The names of the nodes are the same for each trace of a network. None where torch.fx cannot
    trace it.
    """
    traced = _copy_for_tracing(network)
    try:
        return traced, _Tracer().trace(traced)
    except Exception:  # tracing runs the network's own code, which raises errors of any type
        return None


def build_graph_module(network: nn.Module, traced: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return a module of a graph with the network's own layers and the constants of its trace."""
    attributes: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            path, _, name = str(node.target).rpartition(".")
            owner = network if hasattr(network.get_submodule(path), name) else traced
            attributes[node.target] = getattr(owner.get_submodule(path), name)
    module = fx.GraphModule(attributes, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _find_split(
    graph: fx.Graph, parameters: Collection[str]
) -> tuple[fx.Node, set[fx.Node]] | None:
    """Return the node before the last stage, and the nodes of the last stage."""
    images = next(node for node in graph.nodes if node.op == "placeholder")
    constants = _find_constants(graph)
    last_stage = _find_downstream(
        graph, {node for node in graph.nodes if _uses_parameters(node, parameters)}
    )
    while len(inputs := _find_inputs(last_stage) - set(constants)) > 1:
        last_input = next(node for node in reversed(graph.nodes) if node in inputs)
        last_stage = _find_downstream(graph, last_stage | {last_input})
    if inputs <= {images}:
        return None
    (split_node,) = inputs
    return split_node, last_stage


def _find_constants(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes of further inputs and of parameters and buffers."""
    _, *inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return [*inputs, *(node for node in graph.nodes if node.op == "get_attr")]


def _copy_for_tracing(network: nn.Module) -> nn.Module:
    """Return a copy of a network in the same mode, since tracing adds attributes to its modules.

    Setting train mode first clears the caches of networks that cache values in eval mode.
    """
    copied = copy.deepcopy(network).train()
    for module, original in zip(copied.modules(), network.modules(), strict=True):
        module.training = original.training
    return copied


class _Tracer(fx.Tracer):
    """Tracer that keeps functions and modules as single nodes if timm marks them untraceable."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))  # type: ignore[no-untyped-call]
        self._leaf_types = tuple(get_notrace_modules())  # type: ignore[no-untyped-call]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaf_types) or super().is_leaf_module(m, module_qualified_name)


def _uses_parameters(node: fx.Node, parameters: Collection[str]) -> bool:
    if node.op == "call_module":
        return any(name.startswith(f"{node.target}.") for name in parameters)
    return node.op == "get_attr" and node.target in parameters


def _find_downstream(graph: fx.Graph, nodes: set[fx.Node]) -> set[fx.Node]:
    """Return the given nodes and all that depend on their outputs."""
    downstream = set(nodes)
    for node in graph.nodes:  # in topological order
        if not downstream.isdisjoint(node.all_input_nodes):
            downstream.add(node)
    return downstream


def _find_inputs(nodes: set[fx.Node]) -> set[fx.Node]:
    """Return the nodes outside of a set whose outputs it uses."""
    return {source for node in nodes for source in node.all_input_nodes} - nodes
