"""A network cut in two: its first layers, and all that follows from what they say of an image.

While the first layers stay as they are, what they say of an image is a constant. It is found in the
graph of the network's own computations, not by the names of layers: any timm network whose graph
torch.fx can follow is cut, whatever its family.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from finetune.models.groups import find_layer_groups


@dataclass(frozen=True, slots=True)
class SplitNetwork:
    """Two parts of a network, which share its layers: what trains in one has changed in the other.

    Attributes:
        trunk: Takes images (B, C, H, W), returns maps (B, ...).
        last_stage: Takes those maps, returns logits (B, K).
        node_name: Name of the computation whose value the maps are.
    """

    trunk: fx.GraphModule
    last_stage: fx.GraphModule
    node_name: str


def split_before(network: nn.Module, parameters: Collection[str]) -> SplitNetwork | None:
    """Return a network in two parts, everything that the given parameters reach in the second.

    The cut is the last value from which, apart from parameters, all of that follows. What depends
    on train or eval mode (dropout, stochastic depth) is as in the mode that the network is in.

    Args:
        network: Takes images (B, C, H, W).
        parameters: Names of those in the second part, as they are called in the network.

    Returns:
        The two parts; None where the graph cannot be followed, or only the images themselves are
        such a value.
    """
    traced = _copy_for_tracing(network)
    try:
        graph = _Tracer().trace(traced)
    except Exception:  # tracing runs the network's own code, which raises what it likes
        return None
    images, *constants = [node for node in graph.nodes if node.op == "placeholder"]
    constants += [node for node in graph.nodes if node.op == "get_attr"]
    second = _find_downstream(
        graph, {node for node in graph.nodes if _uses_parameters(node, parameters)}
    )
    while len(given := _find_inputs(second) - set(constants)) > 1:
        last = next(node for node in reversed(graph.nodes) if node in given)
        second = _find_downstream(graph, second | {last})
    if given <= {images}:
        return None
    (value,) = given
    before = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = before.node_copy(node, copies.__getitem__)
        if node is value:
            break
    before.output(copies[value])
    after = fx.Graph()
    copies = {value: after.placeholder("maps")}
    for node in graph.nodes:
        if node in second or node in constants:
            copies[node] = after.node_copy(node, copies.__getitem__)
    first, second_part = (_build_graph_module(network, traced, part) for part in (before, after))
    return SplitNetwork(first, second_part, value.name)


def split_last_groups(network: nn.Module, depth: int) -> SplitNetwork | None:
    """Return a network cut before its last ``depth`` layer groups, the head one of them."""
    groups = find_layer_groups(network)[:depth]
    return split_before(network, [name for group in groups for name in group.parameter_names])


def _copy_for_tracing(network: nn.Module) -> nn.Module:
    """Return a copy to be traced, in the same mode, since tracing leaves its marks.

    Networks that keep what they have computed in eval mode forget it when they are told to train.
    """
    traced = copy.deepcopy(network).train()
    for ours, theirs in zip(traced.modules(), network.modules(), strict=True):
        ours.training = theirs.training
    return traced


class _Tracer(fx.Tracer):
    """Follows everything but what timm knows to resist, which stays a single step."""

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
    """Return some computations and all that use what they give."""
    found = set(nodes)
    for node in graph.nodes:  # in the order in which they are computed
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _find_inputs(nodes: set[fx.Node]) -> set[fx.Node]:
    """Return the computations outside of a part whose values it uses."""
    return {node for inside in nodes for node in inside.all_input_nodes} - nodes


def _build_graph_module(network: nn.Module, traced: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return what computes a graph with a network's own layers, and constants of its trace."""
    used: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            path, _, name = str(node.target).rpartition(".")
            owner = network if hasattr(network.get_submodule(path), name) else traced
            used[node.target] = getattr(owner.get_submodule(path), name)
    module = fx.GraphModule(used, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
