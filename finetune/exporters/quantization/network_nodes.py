"""Nodes of an ONNX graph that belong to the network, and those before and after it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto

WEIGHTED_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators of layers with weights."""


@dataclass(frozen=True, slots=True)
class NetworkNodes:
    """Names of some nodes of a graph.

    Attributes:
        outer: Nodes before the first layers with weights and after the last ones: preprocessing of
            photos, and what makes logits and probabilities of the last layers' outputs.
        ends: The first layers with weights, and the last ones.
    """

    outer: tuple[str, ...]
    ends: tuple[str, ...]


def find_network_nodes(graph: GraphProto) -> NetworkNodes:
    """Return the nodes of a graph that need all of their digits, and its first and last layers."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {n.output[0] for n in graph.node if n.op_type == "Constant"}
    weighted = {
        node.name
        for node in graph.node
        if node.op_type in WEIGHTED_OPERATORS and constants.intersection(node.input[:2])
    }
    # ONNX graphs are sorted: producers come before consumers
    after = _find_reached(graph.node, weighted, is_forward=True)
    before = _find_reached(reversed(graph.node), weighted, is_forward=False)
    inner = {node.name for node in graph.node if node.name in after and node.name in before}
    names = [node.name for node in graph.node]
    return NetworkNodes(
        outer=tuple(name for name in names if name not in weighted and name not in inner),
        ends=tuple(name for name in names if name in weighted and name not in inner),
    )


def name_nodes(nodes: Sequence[NodeProto]) -> None:
    """Give a name to each node that has none."""
    for number, node in enumerate(nodes):
        if not node.name:
            node.name = f"node_{number}_{node.op_type}"


def _find_reached(nodes: Iterable[NodeProto], starts: set[str], *, is_forward: bool) -> set[str]:
    """Return the names of nodes that depend on one of the starts, or that one of them depends on.

    A start is one of them only if it is reached from another start.
    """
    tensors: set[str] = set()
    reached: set[str] = set()
    for node in nodes:
        near, far = (node.input, node.output) if is_forward else (node.output, node.input)
        is_reached = not tensors.isdisjoint(near)
        if is_reached:
            reached.add(node.name)
        if is_reached or node.name in starts:
            tensors.update(far)
    return reached
