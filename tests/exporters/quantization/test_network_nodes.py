"""Tests of the division of ONNX graphs into preprocessing, network and outputs."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from finetune.exporters.quantization.network_nodes import find_network_nodes, name_nodes


def build_graph() -> GraphProto:
    """Return a graph: scaling by a computed matrix, convolution, ReLU, head, softmax."""
    value = helper.make_tensor_value_info
    weights = [
        numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "kernel"),
        numpy_helper.from_array(np.ones((2, 4), np.float32), "head"),
    ]
    nodes = [
        helper.make_node("MatMul", ["images", "matrix"], ["scaled"], "resize"),
        helper.make_node("Conv", ["scaled", "kernel"], ["maps"], "conv"),
        helper.make_node("Relu", ["maps"], ["active"], "relu"),
        helper.make_node("MatMul", ["active", "head"], ["logits"], "classifier"),
        helper.make_node("Add", ["logits", "logits"], ["doubled"], "adjust"),
        helper.make_node("Softmax", ["doubled"], ["probabilities"], "softmax"),
    ]
    images = value("images", TensorProto.FLOAT, [1, 3, 2, 2])
    matrix = value("matrix", TensorProto.FLOAT, [2, 2])
    output = value("probabilities", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "graph", [images, matrix], [output], weights)


def test_find_network_nodes_leaves_out_preprocessing_and_outputs() -> None:
    nodes = find_network_nodes(build_graph())
    assert nodes.outer == ("resize", "adjust", "softmax")
    assert nodes.ends == ("conv", "classifier")


def test_name_nodes_keeps_names_and_fills_in_others() -> None:
    nodes = [NodeProto(op_type="Relu"), NodeProto(op_type="Relu", name="own")]
    name_nodes(nodes)
    assert [bool(nodes[0].name), nodes[1].name] == [True, "own"]
